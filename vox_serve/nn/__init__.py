"""Building blocks that a model plugin may reuse.  Imports neither engine nor server."""

from vox_serve.nn.depth import depth_frame, projected_codes
from vox_serve.nn.init import uninitialised
from vox_serve.nn.linear import Biased, Embedding, Linear, PackedLinear, held_bytes
from vox_serve.nn.llama import FrameCache, Llama, LlamaConfig
from vox_serve.nn.residual import Rows
from vox_serve.nn.rope import RopeConfig
from vox_serve.nn.streaming import CausalConv, Past, TransposedConv
from vox_serve.nn.weights import WeightFiles, WeightLoader, llama_sources, weights_path

__all__ = [
    "Biased",
    "CausalConv",
    "Embedding",
    "FrameCache",
    "Linear",
    "Llama",
    "LlamaConfig",
    "PackedLinear",
    "Past",
    "RopeConfig",
    "Rows",
    "TransposedConv",
    "WeightFiles",
    "WeightLoader",
    "depth_frame",
    "held_bytes",
    "llama_sources",
    "projected_codes",
    "uninitialised",
    "weights_path",
]
