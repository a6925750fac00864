"""A checkpoint's tokenizer finds special tokens by name, and never in a text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

from vox_serve import CheckpointError
from vox_serve.nn.tokenizer import CheckpointTokenizer

IDS = {"<unk>": 0, "<begin>": 1, "a": 2, "b": 3, "<": 4, ">": 5}


@pytest.fixture
def tokenizer(tmp_path: Path) -> CheckpointTokenizer:
    """It has one token per character, and by default adds `<begin>`."""
    stored = Tokenizer(models.WordLevel(IDS, unk_token="<unk>"))
    stored.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    stored.post_processor = processors.TemplateProcessing(
        single="<begin> $A", special_tokens=[("<begin>", 1)]
    )
    stored.add_special_tokens(["<unk>", "<begin>"])
    stored.add_tokens(["<ab>"])
    stored.save(str(tmp_path / "tokenizer.json"))
    named = {"bos_token": "<begin>", "unk_token": {"content": "<unk>"}, "eos_token": "<end>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
    return CheckpointTokenizer(tmp_path)


def test_special_tokens_are_found_by_name(tokenizer: CheckpointTokenizer) -> None:
    assert tokenizer.special("bos_token") == 1
    assert tokenizer.find_special("unk_token") == 0
    assert tokenizer.id_of("<ab>") == 6
    assert tokenizer.find_special("pad_token") is None


@pytest.mark.parametrize(("text", "ids"), [("ab", [2, 3]), ("<ab>", [4, 2, 3, 5])])
def test_a_text_becomes_only_its_characters(
    tokenizer: CheckpointTokenizer, text: str, ids: list[int]
) -> None:
    assert tokenizer.encode(text).ids == ids


def test_a_missing_token_is_reported(tokenizer: CheckpointTokenizer) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: has no pad_token"):
        tokenizer.special("pad_token")
    with pytest.raises(CheckpointError, match="does not contain the token '<end>'"):
        tokenizer.special("eos_token")
