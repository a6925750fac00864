"""Encodes context audio, and caches the frames: the same clips come with every turn."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import cast

import attrs
import torch

from vox_serve.codec import Codec, EncodingCodec, SpeakerCodec
from vox_serve.engine.calls import Calls
from vox_serve.engine.cuda_graph import Stream
from vox_serve.engine.frames import frame_dtype
from vox_serve.voice import Segment

KEPT = 256
"""The most clips whose codes are cached; the codes of a minute of Mimi take 0.2 MB."""


_Heard = tuple[torch.Tensor, torch.Tensor | None]
"""Codes, and the speaker's vector."""


class ContextEncoder:
    """Args: a codec that can encode, its device, and the record of calls in progress.

    Encoding runs in parallel with speech.
    """

    def __init__(self, codec: Codec, device: torch.device, calls: Calls) -> None:
        self._calls = calls
        self._codec = cast("EncodingCodec", codec)
        """A model without context needs no encoder."""
        self._stream = Stream(device)
        self._heard: OrderedDict[bytes, _Heard] = OrderedDict()

    def encode(self, segment: Segment) -> Segment:
        """The segment with codes or latents `[K, F]` on the host, in place of audio.

        Also with the speaker's vector, if the codec makes one.
        """
        if segment.codes is not None or segment.audio is None:
            return segment
        key = hashlib.sha256(segment.audio.tobytes()).digest()
        heard = self._heard.get(key)
        if heard is None:
            pcm = torch.from_numpy(segment.audio)
            with self._calls.of("encode"), self._stream.beside():
                codec, vector = self._codec, None
                if isinstance(codec, SpeakerCodec):
                    vector = codec.embed(pcm).cpu()
                heard = codec.encode(pcm).cpu(), vector
            self._heard[key] = heard
            while len(self._heard) > KEPT:
                self._heard.popitem(last=False)
        else:
            self._heard.move_to_end(key)
        return attrs.evolve(segment, audio=None, codes=heard[0], vector=heard[1])

    def blank(self, segment: Segment) -> Segment:
        """The segment with zeros for the frames that its audio will give, to count positions."""
        if segment.codes is not None or segment.audio is None:
            return segment
        samples = self._codec.frame_size // self._codec.frames_per_step
        frames = -(-len(segment.audio) // samples)
        codes = torch.zeros(self._codec.frame_width, frames, dtype=frame_dtype(self._codec))
        return attrs.evolve(segment, audio=None, codes=codes)
