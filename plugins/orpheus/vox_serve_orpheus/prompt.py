"""Turns text into prompt tokens, and finds the ids of Orpheus's markers and codes.

Orpheus appended `<custom_token_0>`, `<custom_token_1>`, ... to Llama 3's tokenizer: ten markers,
then the codes.  Their ids are read from `tokenizer.json`.  For the meaning of the markers, see
github.com/canopyai/Orpheus-TTS, issues 76 and 200; comments give the published ids.

A prompt is `tokens` int64 `[T]`.
"""

from __future__ import annotations

from pathlib import Path

from vox_serve import CheckpointError
from vox_serve.nn.tokenizer import CheckpointTokenizer

FIRST_CODE = 10
"""The number of the custom token for code 0 at the first position of a frame."""


class OrpheusTokenizer:
    """The checkpoint's tokenizer, with Orpheus's markers around the text.

    Args:
        directory: contains `tokenizer.json` and `tokenizer_config.json`.
        num_codes: the number of codes that follow the markers (7 x 4096).

    Raises:
        CheckpointError: a file or a token is missing, or the codes' ids are not consecutive.
    """

    def __init__(self, directory: Path, num_codes: int) -> None:
        self._tokenizer = CheckpointTokenizer(directory)
        begin_text = self._tokenizer.special("bos_token")  # 128000
        end_text = self._tokenizer.id_of("<|eot_id|>")  # 128009
        start_speech, self.end_speech = self._custom(1), self._custom(2)  # 128257, 128258
        start_human, end_human = self._custom(3), self._custom(4)  # 128259, 128260
        start_ai = self._custom(5)  # 128261
        self._before = [start_human, begin_text]
        self._after = [end_text, end_human, start_ai, start_speech]
        self.first_code = self._custom(FIRST_CODE)  # 128266
        self.last_code = self._custom(FIRST_CODE + num_codes - 1)  # 156937
        if self.last_code - self.first_code != num_codes - 1:
            raise CheckpointError(
                f"{self._tokenizer.path}: the ids of its {num_codes} codes are not consecutive"
            )

    def encode(self, text: str, voice: str) -> list[int]:
        """`voice: text` between the markers.  Runs of white space become one space."""
        spoken = f"{voice}: {' '.join(text.split())}"
        ids = self._tokenizer.encode(spoken).ids
        return [*self._before, *ids, *self._after]

    def _custom(self, number: int) -> int:
        return self._tokenizer.id_of(f"<custom_token_{number}>")
