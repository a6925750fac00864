"""The conformance suite that a plugin's tests subclass, and its tools."""

from vox_serve.testing.conformance import ModelConformance
from vox_serve.testing.replay import HostRead, no_host_read
from vox_serve.testing.utterances import watch_frames

__all__ = ["HostRead", "ModelConformance", "no_host_read", "watch_frames"]
