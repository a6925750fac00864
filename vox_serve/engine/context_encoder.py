"""Encodes context audio, and caches the frames: the same clips come with every turn."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import cast

import attrs
import torch

from vox_serve.codec import Codec, EncodingCodec
from vox_serve.engine.calls import Calls
from vox_serve.engine.cuda_graph import Stream
from vox_serve.engine.frames import frame_dtype
from vox_serve.voice import Segment

KEPT = 256
"""The most clips whose codes are cached; the codes of a minute of Mimi take 0.2 MB."""


class ContextEncoder:
    """Args: a codec that can encode, its device, and the record of calls in progress.

    Encoding runs in parallel with speech.
    """

    def __init__(self, codec: Codec, device: torch.device, calls: Calls) -> None:
        self._calls = calls
        self._codec = cast("EncodingCodec", codec)
        """A model without context needs no encoder."""
        self._stream = Stream(device)
        self._codes: OrderedDict[bytes, torch.Tensor] = OrderedDict()

    def encode(self, segment: Segment) -> Segment:
        """The segment with codes or latents `[K, F]` on the host, in place of audio."""
        if segment.codes is not None or segment.audio is None:
            return segment
        key = hashlib.sha256(segment.audio.tobytes()).digest()
        codes = self._codes.get(key)
        if codes is None:
            with self._calls.of("encode"), self._stream.beside():
                codes = self._codec.encode(torch.from_numpy(segment.audio)).cpu()
            self._codes[key] = codes
            while len(self._codes) > KEPT:
                self._codes.popitem(last=False)
        else:
            self._codes.move_to_end(key)
        return attrs.evolve(segment, audio=None, codes=codes)

    def blank(self, segment: Segment) -> Segment:
        """The segment with zeros for the frames that its audio will give, to count positions."""
        if segment.codes is not None or segment.audio is None:
            return segment
        samples = self._codec.frame_size // self._codec.frames_per_step
        frames = -(-len(segment.audio) // samples)
        codes = torch.zeros(self._codec.frame_width, frames, dtype=frame_dtype(self._codec))
        return attrs.evolve(segment, audio=None, codes=codes)
