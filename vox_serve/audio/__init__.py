"""Audio files to samples, and samples to what a client asked for.  Loads no torch."""

from vox_serve.audio.read import AudioUnreadable, read_audio

__all__ = ["AudioUnreadable", "read_audio"]
