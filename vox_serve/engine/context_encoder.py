"""Context audio to codes, remembered: the same clip comes again with every turn."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

import attrs
import torch

from vox_serve.codec import Codec
from vox_serve.engine.cuda_graph import Stream
from vox_serve.voice import Segment

KEPT = 256
"""Clips whose codes are remembered; a minute of Mimi is 0.2 MB."""


class ContextEncoder:
    """Args: the codec that encodes, and its device: it works beside what is being spoken."""

    def __init__(self, codec: Codec, device: torch.device) -> None:
        self._codec = codec
        self._stream = Stream(device)
        self._codes: OrderedDict[bytes, torch.Tensor] = OrderedDict()

    def encode(self, segment: Segment) -> Segment:
        """The segment with codes int64 `[K, F]` on the host, in place of audio."""
        if segment.codes is not None or segment.audio is None:
            return segment
        key = hashlib.sha256(segment.audio.tobytes()).digest()
        codes = self._codes.get(key)
        if codes is None:
            with self._stream.beside():
                codes = self._codec.encode(torch.from_numpy(segment.audio)).cpu()
            self._codes[key] = codes
            while len(self._codes) > KEPT:
                self._codes.popitem(last=False)
        else:
            self._codes.move_to_end(key)
        return attrs.evolve(segment, audio=None, codes=codes)
