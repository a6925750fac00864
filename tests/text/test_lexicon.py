"""The dictionary of pronunciations."""

from __future__ import annotations

from pathlib import Path

import pytest

from vox_serve.errors import ConfigError, InvalidRequest
from vox_serve.text import Lexicon, check_pronunciations, read_lexicon

LEXICON = Lexicon({"nginx": "engine x", "GIF": "jif", "C++": "see plus plus", "New York": "NY"})


@pytest.mark.parametrize(
    ("written", "spelled"),
    [
        ("nginx, Nginx and NGINX", "engine x, engine x and engine x"),
        ("a GIF, a gif", "a jif, a gif"),
        ("GIFs", "GIFs"),
        ("C++ and C", "see plus plus and C"),
        ("in New  York.", "in NY."),
        ("nginx's", "nginx's"),
        ("", ""),
    ],
)
def test_whole_words_are_replaced_and_case_matters(written: str, spelled: str) -> None:
    assert LEXICON.apply(written) == spelled


def test_the_longest_entry_wins_and_a_requests_entries_take_precedence() -> None:
    assert Lexicon({"new": "n", "new york": "ny"}).apply("new york new") == "ny n"
    assert LEXICON.with_more({"GIF": "ghif"}).apply("GIF nginx") == "ghif engine x"
    assert LEXICON.with_more({}) is LEXICON


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ({str(n): "x" for n in range(1001)}, "1001 words; the limit is 1000"),
        ({"": "x"}, "1 to 200 characters"),
        ({"x": "y" * 201}, "1 to 200 characters"),
    ],
)
def test_the_entries_of_a_request_are_limited(entries: dict[str, str], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says) as caught:
        check_pronunciations(entries)
    assert caught.value.param == "pronunciations"


def test_a_file_is_a_json_object(tmp_path: Path) -> None:
    file = tmp_path / "words.json"
    file.write_text('{"SQL": "sequel"}')
    assert read_lexicon(file).apply("SQL") == "sequel"
    for content, says in {
        "{": "is not JSON",
        "[1]": "an object",
        '{"a": 1}': "an object",
    }.items():
        file.write_text(content)
        with pytest.raises(ConfigError, match=says):
            read_lexicon(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_lexicon(tmp_path / "none.json")
