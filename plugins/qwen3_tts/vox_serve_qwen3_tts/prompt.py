"""Turns a text, a voice and instructions into prompt rows, and text that goes in with the frames.

A prompt is `tokens` int64 `[T, K + 1]`: a text id and K codes, with -1 where there is none.  The
model adds up the embeddings of a row.  Ids of the talker's vocabulary that are not codes stand in
the column of codebook 0.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from vox_serve import CheckpointError, Prompt, Segment, UnspeakableText
from vox_serve_qwen3_tts.config import QwenConfig

EMPTY = -1
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2's tokenizer cuts a text into words, from transformers."""


class TextTokenizer:
    """Qwen2's byte-level tokenizer, from `vocab.json` and `merges.txt`.

    It finds no special tokens: one that is spelled out in a text is spoken as characters.

    Raises:
        CheckpointError: a file is missing or cannot be read.
    """

    def __init__(self, directory: Path, text_vocab: int) -> None:
        files = directory / "vocab.json", directory / "merges.txt"
        for path in files:
            if not path.is_file():
                raise CheckpointError(f"{path}: this file is missing; download it again")
        try:
            self._tokenizer = Tokenizer(models.BPE.from_file(*map(str, files)))
        except Exception as error:  # tokenizers raises bare Exception
            raise CheckpointError(f"{files[0]}: cannot be read ({error})") from error
        if self._tokenizer.get_vocab_size() > text_vocab:
            raise CheckpointError(
                f"{files[0]}: {self._tokenizer.get_vocab_size()} tokens; "
                f"the configuration has {text_vocab}"
            )
        self._tokenizer.normalizer = normalizers.NFC()
        words = pre_tokenizers.Split(Regex(PATTERN), "isolated")
        bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        self._tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, bytewise])

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def settled(self, text: str) -> tuple[list[int], str]:
        """The ids that no further text can change, and the rest of the text.

        A match of `PATTERN` depends on its own text and the next character, or for white space on
        the text up to the next other character.  So further text can change only white space at
        the end, the last word if no space follows it, and text that a combining mark at the
        beginning of a word may change.
        """
        seen = text.rstrip()
        found = self._tokenizer.encode(seen, add_special_tokens=False)
        if text[len(seen) :].startswith(" "):
            return found.ids, text[len(seen) :]
        words, starts = found.word_ids, [start for start, _ in found.offsets]
        for place in range(len(words) - 1, 0, -1):
            begins = words[place] != words[place - 1]
            if begins and not unicodedata.category(text[starts[place]]).startswith("M"):
                return found.ids[:place], text[starts[place] :]
        return [], text


class PromptBuilder:
    """Builds prompts for one checkpoint."""

    def __init__(self, tokenizer: TextTokenizer, config: QwenConfig) -> None:
        self._tokenizer = tokenizer
        self._config = config

    def build(
        self,
        text: str,
        speaker: str | None,
        segments: Sequence[Segment],
        language: str,
        instructions: str,
    ) -> Prompt:
        """Build the prompt of a complete text.

        With a clip's transcript, or if the checkpoint clones, the text goes in beside the frames;
        otherwise it comes first.  The package has the same defaults.

        Args:
            speaker: one of the checkpoint's.
            segments: a clip of who shall speak; at most one.

        Raises:
            UnspeakableText: nothing of the text is left.
        """
        tokens, _ = self.tokens(text.strip(), end=True)
        cloned = bool(segments and segments[0].text.strip())
        if cloned or self._config.kind == "base":
            return self.build_beside(tokens, True, speaker, segments, language, instructions)
        self._check(tokens, end=True)
        rows = self._begin(speaker, segments, language, instructions)
        shared, ids = len(rows.rows), self._config
        for token in tokens:
            rows.add(token, ids.code.pad)
        rows.add(ids.text.pad, ids.code.begin)
        return self._prompt(rows, [], shared, segments)

    def build_beside(
        self,
        tokens: Sequence[int],
        end: bool,
        speaker: str | None,
        segments: Sequence[Segment],
        language: str,
        instructions: str,
    ) -> Prompt:
        """Build the prompt of a text of which each frame takes one token.

        It holds the first token or, with a clip's transcript, the tokens that the clip's frames
        take.  If there are not enough tokens yet, it has no inputs.

        Args:
            tokens: from `tokens`; the text may continue unless `end` is true.
            speaker, segments, language, instructions: as for `build`.

        Raises:
            UnspeakableText: nothing of the text is left.
        """
        self._check(tokens, end)
        clip = segments[0] if segments and segments[0].text.strip() else None
        heard = [] if clip is None else self._tokenizer.encode(clip.text.strip())
        text = [*heard, *tokens]
        if len(text) < _num_frames(clip) + 1 and not end:
            return Prompt({})
        rows = self._begin(speaker, segments, language, instructions)
        shared = len(rows.rows) + len(heard)
        if clip is None:
            rows.add(text[0], self._config.code.begin)
            later = text[1:]
        else:
            later = self._beside(rows, text, clip)
        return self._prompt(rows, later, min(shared, len(rows.rows)), segments)

    def tokens(self, text: str, end: bool) -> tuple[list[int], str]:
        """Like `vox_serve.LiveText.tokens`."""
        if end:
            return [*self._tokenizer.encode(text.rstrip()), self._config.text.end], ""
        return self._tokenizer.settled(text)

    def _check(self, tokens: Sequence[int], end: bool) -> None:
        if end and len(tokens) == 1:  # only the end mark
            raise UnspeakableText("text contains nothing that this voice can speak", "text")

    def _begin(
        self,
        speaker: str | None,
        segments: Sequence[Segment],
        language: str,
        instructions: str,
    ) -> _Rows:
        """What comes before the text."""
        ids, text_ids, code_ids = self._config, self._config.text, self._config.code
        rows = _Rows(ids.num_codebooks)
        if instructions.strip():
            self._instruct(rows, instructions.strip())
        for token in (text_ids.turn_begin, *self._tokenizer.encode("assistant\n")):
            rows.add(token)
        shown: list[int | None] = list(self._header(language, speaker))
        if segments:
            shown.append(None)  # the place of the speaker's vector
        shown.append(code_ids.pad)
        for number, code in enumerate(shown, 1):
            if code is None:
                rows.vector = len(rows.rows)
            rows.add(text_ids.begin if number == len(shown) else text_ids.pad, code)
        return rows

    def _instruct(self, rows: _Rows, instructions: str) -> None:
        said = self._tokenizer.encode(f"user\n{instructions}")
        config = self._config.text
        newline = self._tokenizer.encode("\n")
        for token in (config.turn_begin, *said, config.turn_end, *newline):
            rows.add(token)

    def _header(self, language: str, speaker: str | None) -> list[int]:
        """Ids that name the language and the speaker."""
        config, code = self._config, self._config.code
        number = config.languages.get(language)
        if speaker is not None and language in ("auto", "zh") and speaker in config.dialects:
            number = config.dialects[speaker]
        named = [] if number is None else [number]
        header = [code.nothink if number is None else code.think, code.think_begin]
        header += [*named, code.think_end]
        return header if speaker is None else [*header, config.speakers[speaker]]

    def _beside(self, rows: _Rows, text: list[int], clip: Segment) -> list[int]:
        """Add a clip's frames with its transcript and the text beside them; returns the rest."""
        assert clip.codes is not None  # the engine has encoded it
        config = self._config
        frames = clip.codes.T.tolist()
        rows.add(text[0], config.code.begin)
        for number, frame in enumerate(frames, 1):
            token = text[number] if number < len(text) else config.text.pad
            rows.add(token, *frame)
        return text[len(frames) + 1 :]

    def _prompt(
        self, rows: _Rows, later: list[int], shared: int, segments: Sequence[Segment]
    ) -> Prompt:
        inputs = {"tokens": rows.tensor()}
        clip = segments[0] if segments else None
        if self._config.kind == "base":
            width = self._config.talker.hidden_size
            inputs["vector"] = torch.zeros(len(rows.rows), width)
            if rows.vector is not None and clip is not None and clip.vector is not None:
                inputs["vector"][rows.vector] = clip.vector
        return Prompt(inputs, shared=shared, later=torch.tensor(later, dtype=torch.int64))


def _num_frames(clip: Segment | None) -> int:
    return 0 if clip is None or clip.codes is None else clip.codes.shape[1]


class _Rows:
    """Rows of a prompt so far."""

    def __init__(self, books: int) -> None:
        self._books = books
        self.rows: list[tuple[int, ...]] = []
        self.vector: int | None = None
        """The row of the speaker's vector."""

    def add(self, text: int, *codes: int | None) -> None:
        row = [EMPTY if code is None else code for code in codes]
        self.rows.append((text, *row, *[EMPTY] * (self._books - len(row))))

    def tensor(self) -> torch.Tensor:
        return torch.tensor(self.rows)
