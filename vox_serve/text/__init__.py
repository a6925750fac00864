"""Text to sentences and pieces, whole or as it arrives.  Knows nothing of models or requests."""

from vox_serve.text.packing import speakable
from vox_serve.text.sentences import Sentences, likely_seconds, pieces

__all__ = ["Sentences", "likely_seconds", "pieces", "speakable"]
