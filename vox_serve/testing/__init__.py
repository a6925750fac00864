"""The conformance suite that a plugin's tests subclass, and its tools."""

from vox_serve.testing.conformance import ModelConformance, watch_frames
from vox_serve.testing.replay import HostRead, no_host_read

__all__ = ["HostRead", "ModelConformance", "no_host_read", "watch_frames"]
