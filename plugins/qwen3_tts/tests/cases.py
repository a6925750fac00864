"""The requests of the golden files.  This module does not import the package."""

from __future__ import annotations

import attrs

FRAMES = 20
CLIP_FRAMES = 9
TRANSCRIPT = "the assistant says hello."
LONG = "hello there, this is the assistant with a somewhat longer text to read out."
NAMES = {"en": "English", "zh": "Chinese", "de": "German", "auto": "Auto"}


@attrs.frozen
class Case:
    """Fields of a request; without `transcript`, only the speaker's vector is used."""

    name: str
    kind: str
    text: str
    voice: str
    language: str = "auto"
    instructions: str = ""
    transcript: str | None = TRANSCRIPT
    penalty: float = 1.05
    text_first: bool | None = None
    """None: as the checkpoint's kind has it."""

    @property
    def beside(self) -> bool:
        """Whether each frame takes one token of the text."""
        return self.kind == "base" if self.text_first is None else not self.text_first

    @property
    def package_language(self) -> str:
        return NAMES[self.language]


HEARD = ("english", "designed", "cloned")
"""Cases whose sound is also compared."""
CASES = (
    Case("plain", "custom_voice", "hello there", "vivian"),
    Case("english", "custom_voice", "the assistant", "vivian", "en"),
    Case("dialect", "custom_voice", "hello", "dylan"),
    Case("dialect left", "custom_voice", "hello", "dylan", "de"),
    Case("instructed", "custom_voice", LONG, "vivian", "zh", "Whisper, slowly."),
    Case("without penalty", "custom_voice", "hello there", "dylan", penalty=1.0),
    Case("designed", "voice_design", "hello there", "described", "en", "A calm voice."),
    Case("undescribed", "voice_design", LONG, "described"),
    Case("cloned", "base", "hello there", "anna", "en"),
    Case("cloned, long", "base", LONG * 2, "anna"),
    Case("vector", "base", LONG, "anna", transcript=None),
    Case("nobody", "base", "hello there", "any", "de"),
    Case("beside", "custom_voice", LONG, "vivian", "en", text_first=False),
    Case("beside, dialect", "custom_voice", "hello there", "dylan", text_first=False),
    Case("beside, told", "custom_voice", LONG, "vivian", "zh", "Whisper.", text_first=False),
    Case("beside, designed", "voice_design", LONG, "described", "en", "Calm.", text_first=False),
)
