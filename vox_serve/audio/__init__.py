"""Reads audio files into samples, and encodes samples in a client's format.  Loads no torch."""

from vox_serve.audio.read import AudioUnreadable, read_audio

__all__ = ["AudioUnreadable", "read_audio"]
