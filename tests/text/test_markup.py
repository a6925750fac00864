"""Markdown, HTML, SSML and pauses."""

from __future__ import annotations

import pytest

from vox_serve.errors import InvalidRequest
from vox_serve.text import Part
from vox_serve.text.markup import LONGEST_PAUSE, plain

READ = {
    "Part Two\n\nA New Day\n\nIt began well.": "Part Two.\nA New Day.\nIt began well.",
    "Apples\nPears\nTen plums": "Apples,\nPears,\nTen plums.",
    "A line that was wrapped\nat its end goes on.": "A line that was wrapped at its end goes on.",
    "Dear Ann,\nI hope you are well.": "Dear Ann,\nI hope you are well.",
    "# Plan\n* **First** this,\n* _then_ that": "Plan.\nFirst this,\nthen that.",
    "1. Mix it\n2. Bake it": "1, Mix it,\n2, Bake it.",
    "| City | Size |\n|---|---|\n| Bonn | 141 |": "City,\nSize.\nBonn,\n141.",
    "> Well said.": "Well said.",
    "Read [this page](https://example.org/p).": "Read this page.",
    "A ~~bad~~ good `word`.": "A bad good word.",
    "```\nx = 1\n```": "x = 1.",
    "Salt &amp; pepper, AT&T &mdash; &#8220;so&#8221;": "Salt & pepper, AT&T — “so”.",
    "<h1>News</h1><p>It <b>rains</b>.</p><ul><li>a</li><li>b</li></ul>": (
        "News.\nIt rains.\na,\nb."
    ),
    "one<br>two <!-- no --> <img alt='a cat' src='x'>": "one,\ntwo a cat.",
    "if a <b and c> d": "if a <b and c> d.",
    "10<sup>2</sup> m": "10^2 m.",
    "<script>f()</script>Said.": "Said.",
    "an unclosed <script> tag": "an unclosed tag.",
    "    four spaces are not code": "four spaces are not code.",
    "[Note]: this is read": "[Note]: this is read.",
    "<speak><s>One</s><s>Two</s><p>Three</p></speak>": "One.\nTwo.\nThree.",
    "<speak><say-as interpret-as='characters'>ABC</say-as> x</speak>": "A B C x.",
    "<speak>the <say-as interpret-as='ordinal'>3</say-as></speak>": "the 3rd.",
    "<speak>the <say-as interpret-as='ordinal'>12</say-as></speak>": "the 12th.",
    "<speak><sub alias='World Wide Web'>WWW</sub></speak>": "World Wide Web.",
    "say <sub alias='doctor'>Dr</sub> Lee": "say doctor Lee.",
}


@pytest.mark.parametrize(("written", "read"), READ.items())
def test_markup_is_read_as_a_person_would_read_it(written: str, read: str) -> None:
    assert "\n".join(part.text for part in plain(written).parts) == read


@pytest.mark.parametrize("written", ["***", "---", "", "\n\n", "<!-- x -->"])
def test_markup_without_text_has_no_parts(written: str) -> None:
    assert plain(written).parts == []


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("One [pause 0.5s] two", 0.5),
        ("One [pause 250ms] two", 0.25),
        ("One <break time='1.5s'/> two", 1.5),
        ("One <break strength='strong'/> two", 0.7),
        ("<speak>One <break/> two</speak>", 0.4),
    ],
)
def test_a_pause_divides_the_text_into_two_parts(written: str, seconds: float) -> None:
    assert plain(written).parts == [Part("One", seconds), Part("two.")]


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("a [pause 11s]", "a pause of 11 s; a pause may last 10 s"),
        ("a [pause 10s]" * 7, "all pauses together 60 s"),
        ("<break time='soon'/>", "0.5s or 500ms, not 'soon'"),
        ("<break strength='huge'/>", "one of none, x-weak"),
        ("<speak>open", "not well formed"),
        ("<?xml version='1.0'?><!DOCTYPE s><speak/>", "document type"),
    ],
)
def test_invalid_markup_is_rejected(written: str, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says) as caught:
        plain(written)
    assert caught.value.param == "text"


def test_tags_without_effect_are_reported_by_name() -> None:
    read = plain("<speak><prosody rate='slow'>Slow</prosody> <amazon:effect/>now</speak>")
    assert read.parts == [Part("Slow now.")]
    assert read.ignored == {"prosody", "effect"}
    assert plain("a <think>b</think>").ignored == {"think"}


def test_tags_of_the_model_are_kept() -> None:
    assert plain("ha <laugh> ha", frozenset({"laugh"})).parts == [Part("ha <laugh> ha.")]


def test_a_pause_at_the_limit_is_allowed() -> None:
    assert plain("a [pause 10s] b").parts[0].pause == LONGEST_PAUSE
