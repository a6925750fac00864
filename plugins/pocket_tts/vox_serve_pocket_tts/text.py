"""Turns text into token ids, spelled as in the model's training."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from vox_serve import CheckpointError, UnspeakableText
from vox_serve.hub import read_json
from vox_serve_pocket_tts.config import PocketConfig

FEW_WORDS = 4
"""A text of at most this many words gets more frames at its end, and leading spaces if needed."""
LEADING_SPACES = 8
TAIL_OF_FEW, TAIL = 5, 3
"""Frames that are still spoken, counted from the one that marks the end."""
_ENDS, _WEAK, _CLOSERS = ".!?…", ",;:-–—", "\"'”’)]»"  # as people write them

Encode = Callable[[str], list[int]]


def frames_after_end(text: str, config: PocketConfig) -> int:
    """The number of frames that are spoken from the one that marks the end, including that one."""
    if config.frames_after_end is not None:
        return config.frames_after_end
    return TAIL_OF_FEW if len(text.split()) <= FEW_WORDS else TAIL


def prepared(text: str, config: PocketConfig) -> str:
    """The text in the reference's spelling (`prepare_text_prompt`).

    Raises:
        UnspeakableText: nothing of the text is left.
    """
    if config.replaced:
        text = text.translate({ord(old): new for old, new in config.replaced.items()})
        # Deleted quotes leave '"Hi?", she said' as 'Hi?, she said': the sentence's mark stays.
        text = re.sub(r"([.!?…])\s*[,;:]", r"\1", " ".join(text.split()))
    text = " ".join(text.split())
    if not text:
        raise UnspeakableText("text contains nothing that this voice can speak", "text")
    if config.drops_semicolons:
        text = text.replace(";", ",")
    if config.capitalizes and not text[0].isupper():
        text = text[0].upper() + text[1:]
    if config.ends_sentences:
        text = _ended(text)
    if config.pads_short and len(text.split()) <= FEW_WORDS:
        text = " " * LEADING_SPACES + text
    return text


def _ended(text: str) -> str:
    """The text with a mark that ends a sentence; closing quotes may follow the mark."""
    core = text.rstrip(_CLOSERS + " ")
    closers = text[len(core) :].strip()
    if not core or core[-1] in _ENDS:
        return text
    if core[-1] in _WEAK:
        return core.rstrip(_WEAK + " ") + "." + closers
    return text + "."


def read_tokenizer(directory: Path, config: PocketConfig) -> Encode:
    """The checkpoint's tokenizer, of either kind.

    Raises:
        CheckpointError: the file is missing, cannot be read or has another number of tokens.
    """
    if config.tokenizer in ("tokenizers", "json"):
        path = directory / "tokenizer.json"
        encode, count = _of_json(path)
    else:
        path = directory / "tokenizer.model"
        encode, count = _of_sentencepiece(path)
    if count != config.text_tokens:
        raise CheckpointError(f"{path}: {count} tokens; the configuration has {config.text_tokens}")
    return encode


def _of_json(path: Path) -> tuple[Encode, int]:
    import json

    from tokenizers import Tokenizer

    stored = read_json(path)
    try:
        tokenizer = Tokenizer.from_str(json.dumps(stored))
    except Exception as error:  # tokenizers raises bare Exception
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    # A special token spelled out in a request is encoded as characters, never as its id.
    tokenizer.encode_special_tokens = True
    unknown = tokenizer.token_to_id("<unk>")

    def encode(text: str) -> list[int]:
        encoding = tokenizer.encode(text)
        ids: list[int] = encoding.ids
        if unknown is not None and unknown in ids:
            start, end = encoding.offsets[ids.index(unknown)]
            _refuse(text[start:end])
        return ids

    return encode, tokenizer.get_vocab_size()


def _of_sentencepiece(path: Path) -> tuple[Encode, int]:
    import sentencepiece

    if not path.is_file():
        raise CheckpointError(f"{path}: this file is missing; download the checkpoint again")
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(path.read_bytes())
    except RuntimeError as error:
        raise CheckpointError(f"{path}: not a sentencepiece model ({error})") from error
    unknown = processor.unk_id()

    def encode(text: str) -> list[int]:
        ids: list[int] = processor.encode(text, out_type=int)
        if unknown in ids:
            _refuse(str(processor.encode(text, out_type=str)[ids.index(unknown)]))
        return ids

    return encode, processor.vocab_size()


def _refuse(characters: str) -> None:
    raise UnspeakableText(f"text contains {characters!r}, which this model cannot speak", "text")
