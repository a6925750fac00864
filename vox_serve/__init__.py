"""vox_serve serves open text-to-speech models.

These are the names that a plugin author imports; building blocks are in `vox_serve.nn`.
"""

from vox_serve.codec import Codec, EncodingCodec, SlotState, SpeakerCodec
from vox_serve.errors import (
    CheckpointError,
    InvalidRequest,
    NotFound,
    PromptTooLong,
    RequestError,
    UnspeakableText,
    VoxServeError,
)
from vox_serve.hookspecs import hookimpl
from vox_serve.model import (
    CheckpointSpec,
    Inputs,
    KVCache,
    KVLayout,
    KVView,
    LiveText,
    LoadOptions,
    Model,
    ModelSpec,
    Prompt,
    StepwiseText,
)
from vox_serve.postprocess import Postprocessor, SoundFacts, SoundProcess
from vox_serve.sampling import (
    Choice,
    Parameters,
    Range,
    Sampler,
    SamplingParams,
    Words,
    parameter,
)
from vox_serve.text import FrontEnd
from vox_serve.voice import Segment, Voice

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "CheckpointSpec",
    "Choice",
    "Codec",
    "EncodingCodec",
    "FrontEnd",
    "Inputs",
    "InvalidRequest",
    "KVCache",
    "KVLayout",
    "KVView",
    "LiveText",
    "LoadOptions",
    "Model",
    "ModelSpec",
    "NotFound",
    "Parameters",
    "Postprocessor",
    "Prompt",
    "PromptTooLong",
    "Range",
    "RequestError",
    "Sampler",
    "SamplingParams",
    "Segment",
    "SlotState",
    "SoundFacts",
    "SoundProcess",
    "SpeakerCodec",
    "StepwiseText",
    "UnspeakableText",
    "Voice",
    "VoxServeError",
    "Words",
    "__version__",
    "hookimpl",
    "parameter",
]
