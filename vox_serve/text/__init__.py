"""Turns any text into what a voice can say, and cuts it into sentences and pieces.

Works on whole texts or on text as it arrives.  Does not depend on models or requests.  Imports its
libraries when a text first needs them.
"""

from vox_serve.text.front import (
    AS_WRITTEN,
    FrontEnd,
    Normalize,
    Spoken,
    language_of,
    with_lexicon,
)
from vox_serve.text.incoming import Incoming
from vox_serve.text.lexicon import Lexicon, check_pronunciations, read_lexicon
from vox_serve.text.markup import PARAGRAPH_SECONDS, Part, is_ssml
from vox_serve.text.packing import speakable
from vox_serve.text.sentences import Sentences, likely_seconds, pieces

__all__ = [
    "AS_WRITTEN",
    "PARAGRAPH_SECONDS",
    "FrontEnd",
    "Incoming",
    "Lexicon",
    "Normalize",
    "Part",
    "Sentences",
    "Spoken",
    "check_pronunciations",
    "is_ssml",
    "language_of",
    "likely_seconds",
    "pieces",
    "read_lexicon",
    "speakable",
    "with_lexicon",
]
