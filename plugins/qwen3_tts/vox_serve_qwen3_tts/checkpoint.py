"""Loads a model from a checkpoint directory in the layout of Qwen's repositories."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch

from vox_serve import CheckpointError, Choice, InvalidRequest, LoadOptions, parameter
from vox_serve.hub import read_config, read_json
from vox_serve.nn import WeightFiles, WeightLoader, llama_sources, uninitialised, weights_path
from vox_serve.sizes import check_sizes
from vox_serve_qwen3_tts.codec import CloningCodec, CodeDecoder
from vox_serve_qwen3_tts.config import COUNTS, TABLES, QwenConfig
from vox_serve_qwen3_tts.model import QwenModel, QwenNetwork
from vox_serve_qwen3_tts.plugin import LANGUAGE_HELP, InstructedParameters, QwenParameters
from vox_serve_qwen3_tts.prompt import PromptBuilder, TextTokenizer

SAMPLING = ("temperature", "top_k", "top_p", "repetition_penalty")
Sources = dict[str, Sequence[str] | Callable[[], torch.Tensor]]


def load_model(options: LoadOptions) -> QwenModel:
    """Load a checkpoint.

    Raises:
        CheckpointError: names the file, tensor or key at fault and says what to do.
    """
    directory = options.directory
    config = QwenConfig.from_json(read_config(str(directory)))
    loader = WeightLoader(WeightFiles(weights_path(directory)))
    network = load_network(config, loader, options)
    codec = load_codec(config, directory, loader, torch.device(options.device))
    loader.finish()
    tokenizer = TextTokenizer(directory, config.text_vocab)
    return QwenModel(
        options,
        config,
        network,
        codec,
        PromptBuilder(tokenizer, config),
        read_sampling(directory, config),
    )


def load_network(config: QwenConfig, loader: WeightLoader, options: LoadOptions) -> QwenNetwork:
    """Build and fill the network, layer by layer."""
    with uninitialised():
        network = QwenNetwork(config)
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    loader.build(network, _sources(config, loader), device, dtype, options.weights)
    network.backbone.prepare(device, dtype)
    network.depth.prepare(device, dtype, network.depth_heads)
    return network


def _sources(config: QwenConfig, loader: WeightLoader) -> Sources:
    """The tensors that fill each parameter of the network."""
    talker, depth = "talker.model.", "talker.code_predictor.model."

    def head() -> torch.Tensor:
        shape = (config.talker_vocab, config.talker.hidden_size)
        rows = loader.read("talker.codec_head.weight", shape)
        return torch.cat([rows[: config.codes], rows[config.code.end][None]])

    others = range(config.num_codebooks - 1)
    sources: Sources = {
        "text.table.weight": [f"{talker}text_embedding.weight"],
        "codes.weight": [
            f"{talker}codec_embedding.weight",
            *(f"{depth}codec_embedding.{number}.weight" for number in others),
        ],
        "head.weight": head,
    }
    biased = {
        "text.up": "talker.text_projection.linear_fc1",
        "text.down": "talker.text_projection.linear_fc2",
    }
    if config.talker.hidden_size != config.depth.hidden_size:
        biased["projector"] = "talker.code_predictor.small_to_mtp_projection"
    for ours, theirs in biased.items():
        sources[f"{ours}.bias"] = [f"{theirs}.bias"]
        sources[f"{ours}.linear.weight"] = [f"{theirs}.weight"]
    for number in others:
        sources[f"depth_heads.{number}.weight"] = [f"talker.code_predictor.lm_head.{number}.weight"]
    for ours, theirs in (("backbone", talker), ("depth", depth)):
        sizes = config.talker if ours == "backbone" else config.depth
        names = llama_sources(theirs, sizes.num_hidden_layers, head_norms=True)
        sources |= {f"{ours}.{name}": tensors for name, tensors in names.items()}
    return sources


def load_codec(
    config: QwenConfig, directory: Path, loader: WeightLoader, device: torch.device
) -> CodeDecoder:
    """The codec; of a checkpoint that clones, with its encoders."""
    folder = directory / "speech_tokenizer"
    stored = read_json(folder / "config.json")
    check_sizes(folder / "config.json", stored, COUNTS, {}, TABLES)
    files = WeightLoader(WeightFiles(weights_path(folder)))
    if config.kind == "base":
        codec: CodeDecoder = CloningCodec(stored, config.speaker_encoder, device)
    else:
        codec = CodeDecoder(stored, device)
        files.ignore(*(name for name in files.names if name.startswith("encoder.")))
    if (codec.frame_width, codec.codebook_size) != (config.num_codebooks, config.codes):
        raise CheckpointError(
            f"{folder}: {codec.frame_width} codebooks of {codec.codebook_size} codes; the model "
            f"has {config.num_codebooks} of {config.codes}"
        )
    codec.load(files)
    files.finish()
    if isinstance(codec, CloningCodec):
        codec.load_speaker(loader)
    return codec


def read_sampling(directory: Path, config: QwenConfig) -> QwenParameters:
    """Defaults from `generation_config.json`; those it lacks are the package's.

    Raises:
        CheckpointError: the file is not a JSON object, or a value is out of range.
    """
    path = directory / "generation_config.json"
    stored = read_json(path) if path.is_file() else {}
    kind = parameters_of(config)
    given: dict[str, Any] = {k: stored[k] for k in SAMPLING if stored.get(k) is not None}
    if stored.get("do_sample") is False:
        given["temperature"] = 0.0
    for name in SAMPLING[:3]:
        other = _subtalker(stored, name)
        if other is not None and other != given.get(name, other):
            raise CheckpointError(
                f"{path}: subtalker_{name} is {other}, and {name} is {given[name]}; this plugin "
                "picks all codebooks with the same settings"
            )
    try:
        return kind().merged(given)
    except InvalidRequest as error:
        raise CheckpointError(f"{path}: {error}") from error


def _subtalker(stored: Mapping[str, Any], name: str) -> Any:
    """A setting of the codebooks after the first."""
    if name == "temperature" and stored.get("subtalker_dosample") is False:
        return 0.0
    return stored.get(f"subtalker_{name}")


def parameters_of(config: QwenConfig) -> type[QwenParameters]:
    """The parameters of a checkpoint, with its languages."""
    base = InstructedParameters if config.instructed else QwenParameters
    languages = Choice(("auto", *config.languages), LANGUAGE_HELP)
    known = base.allowed()["language"]
    if isinstance(known, Choice) and set(known.values) == set(languages.values):
        return base
    field = parameter("auto", languages)
    made: type[QwenParameters] = attrs.make_class(
        base.__name__, {"language": field}, bases=(base,), frozen=True, slots=True
    )
    return made
