"""Text to prompt tokens, and the ids that Orpheus gave a meaning.

Orpheus appended `<custom_token_0>`, `<custom_token_1>`, ... to Llama 3's tokenizer: ten markers,
then the codes.  The ids are read from `tokenizer.json` by those names.  Which marker means what
is in github.com/canopyai/Orpheus-TTS, issues 76 and 200; the published ids stand beside each.

A prompt is `tokens` int64 `[T]`.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer

from vox_serve import CheckpointError, Prompt, PromptTooLong, Voice
from vox_serve.hub import read_json

FIRST_CODE = 10
"""Number of the custom token that is code 0 at the first position of a frame."""


class OrpheusTokenizer:
    """The checkpoint's own tokenizer; special tokens are put on here and never by it.

    Args:
        directory: holds `tokenizer.json` and `tokenizer_config.json`.
        num_codes: how many codes follow the markers (7 x 4096).

    Raises:
        CheckpointError: a file or a token is missing, or the codes are not in one row.
    """

    def __init__(self, directory: Path, num_codes: int) -> None:
        path = directory / "tokenizer.json"
        stored, config = read_json(path), read_json(directory / "tokenizer_config.json")
        begin = config.get("bos_token")
        try:
            self._ids = {token["content"]: token["id"] for token in stored["added_tokens"]}
            # Added tokens are found in any text, whatever flags they have.  Without them a request
            # that spells a marker out gets its characters, never its id.
            self._tokenizer = Tokenizer.from_str(json.dumps(stored | {"added_tokens": []}))
        except Exception as error:  # tokenizers raises bare Exception
            raise CheckpointError(f"{path}: cannot be read ({error})") from error
        if not begin:
            raise CheckpointError("tokenizer_config.json has no bos_token")
        begin_text = self._id(begin["content"] if isinstance(begin, dict) else begin)  # 128000
        end_text = self._id("<|eot_id|>")  # 128009
        start_speech, self.end_speech = self._custom(1), self._custom(2)  # 128257, 128258
        start_human, end_human = self._custom(3), self._custom(4)  # 128259, 128260
        start_ai = self._custom(5)  # 128261
        self._before = [start_human, begin_text]
        self._after = [end_text, end_human, start_ai, start_speech]
        self.first_code = self._custom(FIRST_CODE)  # 128266
        self.last_code = self._custom(FIRST_CODE + num_codes - 1)  # 156937
        if self.last_code - self.first_code != num_codes - 1:
            raise CheckpointError(f"{path}: the ids of its {num_codes} codes are not consecutive")

    def encode(self, text: str, voice: str) -> list[int]:
        """`voice: text` between the markers.  Runs of white space become one space."""
        spoken = f"{voice}: {' '.join(text.split())}"
        ids = self._tokenizer.encode(spoken, add_special_tokens=False).ids
        return [*self._before, *ids, *self._after]

    def _custom(self, number: int) -> int:
        return self._id(f"<custom_token_{number}>")

    def _id(self, token: str) -> int:
        if token not in self._ids:
            raise CheckpointError(
                f"tokenizer.json does not contain the token {token!r}: not Orpheus's tokenizer"
            )
        return int(self._ids[token])


class PromptBuilder:
    """Builds prompts for one model; `max_positions` is the context."""

    def __init__(self, tokenizer: OrpheusTokenizer, max_positions: int) -> None:
        self._tokenizer = tokenizer
        self._max_positions = max_positions

    def build(self, text: str, voice: Voice) -> Prompt:
        """Raises PromptTooLong."""
        ids = self._tokenizer.encode(text, voice.name)
        if len(ids) >= self._max_positions:
            raise PromptTooLong(
                f"text is too long: it takes {len(ids)} positions of the {self._max_positions} "
                "that the model has",
                "text",
            )
        return Prompt({"tokens": torch.tensor(ids)})
