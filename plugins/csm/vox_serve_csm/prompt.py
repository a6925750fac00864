"""Text and context to prompt tokens.

A prompt is `tokens` int64 `[T, K + 1]`: K columns of audio codes and one of text ids, with
-1 where a column is empty.  A text position fills the last column only, an audio frame all
others.  Per context segment: text, its frames, one frame of end codes; then the text to say.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer

from vox_serve import (
    CheckpointError,
    Prompt,
    PromptTooLong,
    Segment,
    UnspeakableText,
)
from vox_serve.hub import read_json

EMPTY = -1


class TextTokenizer:
    """The checkpoint's own tokenizer, with begin and end tokens put on here.

    Some tokenizers add both by themselves and some only the first, so none may add any.

    Raises:
        CheckpointError: a file or a special token is missing.
    """

    def __init__(self, directory: Path) -> None:
        path = directory / "tokenizer.json"
        stored, config = read_json(path), read_json(directory / "tokenizer_config.json")
        try:
            self._tokenizer = Tokenizer.from_str(json.dumps(stored))
        except Exception as error:  # tokenizers raises bare Exception
            raise CheckpointError(f"{path}: cannot be read ({error})") from error
        # A request that spells a special token out gets its characters, never its id.
        self._tokenizer.encode_special_tokens = True
        self.begin = self._special(config, "bos_token")
        self.end = self._special(config, "eos_token")
        unknown = config.get("unk_token")
        self.unknown = self._id(unknown) if unknown else None

    def encode(self, text: str, speaker: int) -> list[int]:
        """`[speaker]text` between begin and end.

        Runs of white space become one space.

        Raises:
            UnspeakableText: a character that the tokenizer does not know.
        """
        spoken = f"[{speaker}]{' '.join(text.split())}"
        encoding = self._tokenizer.encode(spoken, add_special_tokens=False)
        ids: list[int] = encoding.ids
        if self.unknown is not None and self.unknown in ids:
            start, end = encoding.offsets[ids.index(self.unknown)]
            raise UnspeakableText(
                f"text contains {spoken[start:end]!r}, which this model cannot speak", "text"
            )
        return [self.begin, *ids, self.end]

    def _special(self, config: dict[str, object], key: str) -> int:
        token = config.get(key)
        if not token:
            raise CheckpointError(f"tokenizer_config.json has no {key}")
        return self._id(token)

    def _id(self, token: object) -> int:
        content = token["content"] if isinstance(token, dict) else token
        number = self._tokenizer.token_to_id(str(content))
        if number is None:
            raise CheckpointError(f"tokenizer.json does not contain the token {content!r}")
        return int(number)


class PromptBuilder:
    """Builds prompts for one model.

    Args:
        tokenizer: text to ids.
        num_codebooks: K.
        end_code: fills the frame after each context audio.
        max_positions: the context.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        num_codebooks: int,
        end_code: int,
        max_positions: int,
    ) -> None:
        self._tokenizer = tokenizer
        self._num_codebooks = num_codebooks
        self._end_code = end_code
        self._max_positions = max_positions

    def build(self, text: str, speaker: int, segments: Sequence[Segment]) -> Prompt:
        """Raises UnspeakableText or PromptTooLong."""
        said = [self._text(segment.text, segment.speaker) for segment in segments]
        target = self._text(text, speaker)
        heard = [self._audio(segment) for segment in segments]
        length = sum(map(len, [target, *said, *heard]))
        if length >= self._max_positions:
            field = "context" if len(target) < self._max_positions else "text"
            raise PromptTooLong(
                f"{field} is too long: text and context take {length} positions of the "
                f"{self._max_positions} that the model has",
                field,
            )
        parts = [part for turn in zip(said, heard, strict=True) for part in turn]
        tokens = torch.cat([*parts, target])
        return Prompt({"tokens": tokens}, shared=length - len(target))

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
