"""Turns text and context into prompt tokens.

A prompt is `tokens` int64 `[T, K + 1]`: K columns of audio codes and one of text ids, with -1 in
empty columns.  A text position fills only the last column, an audio frame all others.  Each context
segment is its text, its frames and one frame of end codes; the text to speak follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from vox_serve import (
    Prompt,
    Segment,
    UnspeakableText,
)
from vox_serve.nn.tokenizer import CheckpointTokenizer

EMPTY = -1


class TextTokenizer:
    """The checkpoint's tokenizer, with begin and end tokens around each text.

    Raises:
        CheckpointError: a file or a special token is missing.
    """

    def __init__(self, directory: Path) -> None:
        self._tokenizer = CheckpointTokenizer(directory)
        self.begin = self._tokenizer.special("bos_token")
        self.end = self._tokenizer.special("eos_token")
        self.unknown = self._tokenizer.find_special("unk_token")

    def encode(self, text: str, speaker: int) -> list[int]:
        """`[speaker]text` between begin and end.

        Runs of white space become one space.

        Raises:
            UnspeakableText: the text has a character that the tokenizer does not have.
        """
        spoken = f"[{speaker}]{' '.join(text.split())}"
        encoding = self._tokenizer.encode(spoken)
        ids: list[int] = encoding.ids
        if self.unknown is not None and self.unknown in ids:
            start, end = encoding.offsets[ids.index(self.unknown)]
            raise UnspeakableText(
                f"text contains {spoken[start:end]!r}, which this model cannot speak", "text"
            )
        return [self.begin, *ids, self.end]


class PromptBuilder:
    """Builds prompts for one model.

    Args:
        tokenizer: text to ids.
        num_codebooks: K.
        end_code: fills the frame after each context audio.
    """

    def __init__(self, tokenizer: TextTokenizer, num_codebooks: int, end_code: int) -> None:
        self._tokenizer = tokenizer
        self._num_codebooks = num_codebooks
        self._end_code = end_code

    def build(self, text: str, speaker: int, segments: Sequence[Segment]) -> Prompt:
        """Raises UnspeakableText."""
        said = [self._text(segment.text, segment.speaker) for segment in segments]
        target = self._text(text, speaker)
        heard = [self._audio(segment) for segment in segments]
        parts = [part for turn in zip(said, heard, strict=True) for part in turn]
        tokens = torch.cat([*parts, target])
        return Prompt({"tokens": tokens}, shared=len(tokens) - len(target))

    def _text(self, text: str, speaker: int) -> torch.Tensor:
        ids = self._tokenizer.encode(text, speaker)
        tokens = torch.full((len(ids), self._num_codebooks + 1), EMPTY)
        tokens[:, -1] = torch.tensor(ids)
        return tokens

    def _audio(self, segment: Segment) -> torch.Tensor:
        codes = segment.codes
        assert codes is not None  # the engine has encoded it
        tokens = torch.full((codes.shape[1] + 1, self._num_codebooks + 1), EMPTY)
        tokens[:-1, :-1] = codes.T.cpu()
        tokens[-1, :-1] = self._end_code
        return tokens
