"""The full-size models on the meta device: all shapes, but no memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import CsmConfig as TransformersConfig

from vox_serve import LoadOptions, SamplingParams
from vox_serve.model import Model
from vox_serve.nn import WeightLoader, uninitialised
from vox_serve.nn.linear import Fp8Linear, Linear, PaddedLinear
from vox_serve.nn.llama import LlamaConfig
from vox_serve.nn.mimi import Mimi
from vox_serve_csm.config import CsmConfig
from vox_serve_csm.model import CsmModel, CsmNetwork

META = torch.device("meta")
OPTIONS = LoadOptions(Path(), "meta", "bfloat16")


def csm(fp8: bool = False) -> CsmModel:
    """CSM-1B in bfloat16, or with fp8 weights."""
    json = TransformersConfig().to_dict()
    config = CsmConfig.from_json(json)
    with uninitialised():
        network = CsmNetwork(config)
    _hold(network, fp8)
    for stack in (network.backbone, network.depth):
        stack.prepare(META, torch.bfloat16)
    codec = Mimi(config.codec, config.num_codebooks, META)
    loader: Any = _AnyTensors()
    codec.load(loader)
    prompts: Any = None  # no voices are needed
    return CsmModel(OPTIONS, config, network, codec, prompts, (), SamplingParams())


def orpheus(fp8: bool = False) -> Model:
    """Orpheus-3B in bfloat16, or with fp8 weights."""
    from vox_serve_orpheus.checkpoint import CONTEXT, DEFAULTS, ROPE_THETA
    from vox_serve_orpheus.model import OrpheusModel, OrpheusNetwork
    from vox_serve_orpheus.snac import SlotSnac

    sizes = {**DEFAULTS, "max_position_embeddings": CONTEXT}
    config = LlamaConfig.from_json({}, sizes, ROPE_THETA)
    with uninitialised():
        network = OrpheusNetwork(config, 156940, shared=False)
    _hold(network, fp8)
    network.backbone.prepare(META, torch.bfloat16)
    codec = SlotSnac(SNAC, META)
    snac: Any = _Shapes(codec._network.state_dict())
    codec.load(WeightLoader(snac))
    prompts: Any = None
    return OrpheusModel(OPTIONS, network, codec, prompts, 128266, [128258])


def pocket() -> Model:
    """Pocket TTS's default English model in bfloat16."""
    from pocket_tts.models.mimi import build_mimi
    from pocket_tts.utils.config import CONFIGS_DIR, load_config

    from vox_serve_pocket_tts.codec import LatentDecoder
    from vox_serve_pocket_tts.config import PocketConfig
    from vox_serve_pocket_tts.languages import published
    from vox_serve_pocket_tts.model import MOST_STEPS, PocketModel, PocketNetwork
    from vox_serve_pocket_tts.plugin import FlowParameters

    config = PocketConfig.from_tree(published("english"))
    with uninitialised():
        network = PocketNetwork(config)
    _hold(network, fp8=False)
    network.prepare(config.backbone, META, torch.bfloat16)
    shape = (MOST_STEPS, MOST_STEPS, config.flow_width)
    network.flow.times = torch.empty(shape, dtype=torch.bfloat16, device=META)
    with META:
        mimi = build_mimi(load_config(CONFIGS_DIR / "english.yaml").mimi).state_dict()
        tensors = {f"mimi.{name}": tensor for name, tensor in mimi.items()}
        tensors |= {f"flow_lm.emb_{name}": torch.empty(config.latent) for name in ("mean", "std")}
    codec = LatentDecoder(config, META)
    shapes: Any = _Shapes(tensors)
    codec.load(WeightLoader(shapes))
    return PocketModel(OPTIONS, config, network, codec, lambda text: [], {}, FlowParameters())


def qwen() -> Model:
    """Qwen3-TTS 0.6B with named voices, in bfloat16."""
    from vox_serve_qwen3_tts.codec import CodeDecoder
    from vox_serve_qwen3_tts.config import QwenConfig
    from vox_serve_qwen3_tts.model import QwenModel, QwenNetwork
    from vox_serve_qwen3_tts.plugin import QwenParameters

    config = QwenConfig.from_json(QWEN)
    with uninitialised():
        network = QwenNetwork(config)
    _hold(network, fp8=False)
    for stack in (network.backbone, network.depth):
        stack.prepare(META, torch.bfloat16)
    codec = CodeDecoder(QWEN_CODEC, META)
    loader: Any = _AnyTensors()
    codec.load(loader)
    prompts: Any = None
    return QwenModel(OPTIONS, config, network, codec, prompts, QwenParameters())


def dia() -> Model:
    """Dia 1.6B in bfloat16."""
    from vox_serve_dia.config import DiaConfig
    from vox_serve_dia.dac import Dac
    from vox_serve_dia.model import DiaModel
    from vox_serve_dia.network import DiaNetwork
    from vox_serve_dia.plugin import DiaParameters

    config = DiaConfig.from_json({"model_type": "dia"})
    with uninitialised():
        network = DiaNetwork(config)
    _hold(network, fp8=False)
    network.prepare(META, torch.bfloat16)
    codec = Dac(DAC, config.delays, config.vocab, META)
    loader: Any = _AnyTensors()
    codec.load(loader)
    return DiaModel(OPTIONS, config, network, codec, DiaParameters())


_QWEN_HEADS = {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}
QWEN = {
    "model_type": "qwen3_tts",
    "tokenizer_type": "qwen3_tts_tokenizer_12hz",
    "tts_model_type": "custom_voice",
    "tts_model_size": "0b6",
    "talker_config": {
        **_QWEN_HEADS,
        "vocab_size": 3072,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_code_groups": 16,
        "text_vocab_size": 151936,
        "text_hidden_size": 2048,
        "rope_theta": 1000000,
        "rope_scaling": {
            "rope_type": "default",
            "interleaved": True,
            "mrope_section": [24, 20, 20],
        },
        "codec_eos_token_id": 2150,
        "codec_bos_id": 2149,
        "codec_pad_id": 2148,
        "codec_think_id": 2154,
        "codec_nothink_id": 2155,
        "codec_think_bos_id": 2156,
        "codec_think_eos_id": 2157,
        "codec_language_id": {"english": 2050},
        "spk_id": {"vivian": 3065},
        "spk_is_dialect": {"vivian": False},
        "code_predictor_config": {**_QWEN_HEADS, "num_code_groups": 16, "rope_theta": 1000000},
    },
}
"""config.json of such a checkpoint, without its other languages and speakers."""
QWEN_CODEC = {
    "model_type": "qwen3_tts_tokenizer_12hz",
    "decoder_config": {
        "codebook_dim": 512,
        "hidden_size": 512,
        "head_dim": 64,
        "intermediate_size": 1024,
    },
}
DAC = {
    "sampling_rate": 44100,
    "encoder_hidden_size": 64,
    "downsampling_ratios": [2, 4, 8, 8],
    "decoder_hidden_size": 1536,
    "n_codebooks": 9,
    "codebook_size": 1024,
    "codebook_dim": 8,
}
"""config.json of descript/dac_44khz."""
SNAC = {
    "sampling_rate": 24000,
    "encoder_dim": 48,
    "encoder_rates": [2, 4, 8, 8],
    "decoder_dim": 1024,
    "decoder_rates": [8, 8, 4, 2],
    "attn_window_size": None,
    "codebook_size": 4096,
    "codebook_dim": 8,
    "vq_strides": [4, 2, 1],
    "noise": True,
    "depthwise": True,
}
"""config.json of hubertsiuzdak/snac_24khz."""


class _AnyTensors:
    """In place of a loader; it has a tensor for every name and shape."""

    def read(self, name: str, shape: Sequence[int]) -> torch.Tensor:
        return torch.empty(tuple(shape), device=META)

    def ignore(self, *names: str) -> None:
        pass

    def finish(self) -> None:
        pass


class _Shapes:
    """In place of a checkpoint's files."""

    path = Path("meta")

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.names = set(tensors)
        self.read = tensors.__getitem__

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.read(name).shape)


def _hold(network: nn.Module, fp8: bool) -> None:
    """Weights in the form used on CUDA."""
    network.bfloat16().requires_grad_(False)
    for name, layer in list(network.named_modules()):
        if isinstance(layer, Linear):
            padded = layer.out_features % 64 != 0
            if fp8 or padded:
                form = Fp8Linear if fp8 else PaddedLinear
                network.set_submodule(name, form(layer.weight.detach()))
