"""Any text to what a voice can say, and to sentences and pieces, whole or as it arrives.

It knows nothing of models or requests.  The libraries that it uses are imported when a text first
needs them.
"""

from vox_serve.text.front import FrontEnd, Normalize, Spoken
from vox_serve.text.lexicon import Lexicon, check_pronunciations, read_lexicon
from vox_serve.text.markup import Part
from vox_serve.text.packing import speakable
from vox_serve.text.sentences import Sentences, likely_seconds, pieces

__all__ = [
    "FrontEnd",
    "Lexicon",
    "Normalize",
    "Part",
    "Sentences",
    "Spoken",
    "check_pronunciations",
    "likely_seconds",
    "pieces",
    "read_lexicon",
    "speakable",
]
