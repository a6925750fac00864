"""Writes `golden/`: the results of the package `qwen-tts` for the small checkpoints.

The package pins an old transformers, so it needs an environment of its own:

    python -m venv golden-venv
    golden-venv/bin/pip install qwen-tts==0.1.1
    golden-venv/bin/python -m plugins.qwen3_tts.tests.make_golden

If the modules of its other codec (25 Hz) are not installed, empty ones replace them.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import masking_utils
from transformers.models.mimi import modeling_mimi

from plugins.qwen3_tts.tests.cases import CASES, CLIP_FRAMES, FRAMES, HEARD, TRANSCRIPT, Case
from plugins.qwen3_tts.tests.checkpoints import (
    BOOKS,
    CODES,
    GOLDEN,
    KINDS,
    clip,
    codec_config,
    model_config,
    write_checkpoint,
    write_settings,
)
from tests.checkpoint_files import write_json

for name in ("sox", "onnxruntime", "torchaudio"):
    if importlib.util.find_spec(name) is None:
        parts = [name] if name != "torchaudio" else [name, f"{name}.compliance"]
        for part in [*parts, "torchaudio.compliance.kaldi"]:
            sys.modules.setdefault(part, ModuleType(part))

from qwen_tts import Qwen3TTSModel  # noqa: E402
from qwen_tts.core.models import Qwen3TTSConfig, Qwen3TTSForConditionalGeneration  # noqa: E402
from qwen_tts.core.tokenizer_12hz import configuration_qwen3_tts_tokenizer_v2 as codec_sizes  # noqa: E402
from qwen_tts.core.tokenizer_12hz import modeling_qwen3_tts_tokenizer_v2 as codec_model  # noqa: E402


def main() -> None:
    GOLDEN.mkdir(exist_ok=True)
    write_json(GOLDEN / "shapes.json", shapes())
    codes, sound = {}, {}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for kind in KINDS:
            model = load(write_checkpoint(Path(folder) / kind, kind))
            for case in (case for case in CASES if case.kind == kind):
                codes[case.name], heard = speak(model, case)
                if case.name in HEARD:
                    sound[case.name] = (heard * 32767).round().to(torch.int16)
                print(case.name, len(codes[case.name]), codes[case.name][:3])
            if kind == "base":
                item = cloned(model)
                codes["clip"] = item.ref_code.T.tolist()
                sound["vector of the clip"] = item.ref_spk_embedding
                sound["decoded"] = decoded(model)
            codes[f"tokens of {kind}"] = tokens(model)
    write_json(GOLDEN / "codes.json", codes)
    save_file({n: t.contiguous() for n, t in sound.items()}, GOLDEN / "sound.safetensors")


def shapes() -> dict[str, Any]:
    """The tensors of each checkpoint with the package's names."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            write_settings(Path(folder), model_config(kind))
            model = Qwen3TTSForConditionalGeneration(Qwen3TTSConfig.from_pretrained(folder))
            found[kind] = {n: list(t.shape) for n, t in model.state_dict().items()}
    stored = codec_config()
    sizes = codec_sizes.Qwen3TTSTokenizerV2Config(**stored)
    codec = codec_model.Qwen3TTSTokenizerV2Model(sizes)
    found["codec"] = {n: list(t.shape) for n, t in codec.state_dict().items()}
    return found


def write_weights(directory: Path) -> None:
    """Write random weights with the sizes of the directory's configurations, for benchmarks."""
    torch.manual_seed(0)
    model = Qwen3TTSForConditionalGeneration(Qwen3TTSConfig.from_pretrained(directory))
    save_file(model.state_dict(), directory / "model.safetensors")
    codec = directory / "speech_tokenizer"
    sizes = codec_sizes.Qwen3TTSTokenizerV2Config.from_pretrained(codec)
    made = codec_model.Qwen3TTSTokenizerV2Model(sizes)
    save_file(made.state_dict(), codec / "model.safetensors")


def load(directory: Path) -> Any:
    model = Qwen3TTSModel.from_pretrained(str(directory), dtype=torch.float32)
    model.model.eval()
    return model


@contextmanager
def greedy() -> Iterator[dict[str, Any]]:
    with mimi_window():
        yield {
            "do_sample": False,
            "subtalker_dosample": False,
            "max_new_tokens": FRAMES + 1,
            "top_k": None,
            "top_p": None,
            "temperature": None,
        }


@contextmanager
def mimi_window() -> Iterator[None]:
    """Make Mimi mask by its window, as in transformers 5; transformers 4 ignores the window."""
    sliding = masking_utils.create_sliding_window_causal_mask
    with mock.patch.object(modeling_mimi, "create_causal_mask", sliding, create=True):
        yield


def cloned(model: Any) -> Any:
    with mimi_window():
        return model.create_voice_clone_prompt((clip(CLIP_FRAMES), 24000), TRANSCRIPT)[0]


def speak(model: Any, case: Case) -> tuple[list[list[int]], torch.Tensor]:
    """The codes `[F, K]` that the package picks greedily, and their sound without the clip's."""
    recorded: list[Any] = []
    whole = model.model.generate

    def generate(**given: Any) -> Any:
        given["repetition_penalty"] = case.penalty
        made = whole(**given)
        recorded.append(made)
        return made

    language = case.package_language
    with mock.patch.object(model.model, "generate", generate), greedy() as given:
        options: dict[str, Any] = {"text": case.text, "language": language, **given}
        if case.text_first is not None:
            options["non_streaming_mode"] = case.text_first
        if case.kind == "custom_voice":
            model.generate_custom_voice(
                speaker=case.voice, instruct=case.instructions or None, **options
            )
        elif case.kind == "voice_design":
            model.generate_voice_design(instruct=case.instructions, **options)
        elif case.voice == "any":
            with_none(model, options)
        else:
            prompt = cloned(model)
            if case.transcript is None:
                prompt.icl_mode, prompt.x_vector_only_mode, prompt.ref_code = False, True, None
                prompt.ref_text = None
            model.generate_voice_clone(voice_clone_prompt=[prompt], **options)
    codes = recorded[0][0][0]
    wavs, _ = model.model.speech_tokenizer.decode([{"audio_codes": codes}])
    return codes.tolist(), torch.from_numpy(np.asarray(wavs[0]))


def with_none(model: Any, options: dict[str, Any]) -> None:
    """Speak without a clip, which only the inner function of a base model accepts."""
    text = options.pop("text")
    language = options.pop("language")
    ids = model._tokenize_texts([model._build_assistant_text(text)])
    model.model.generate(input_ids=ids, languages=[language], **options)


def decoded(model: Any) -> torch.Tensor:
    """Random codes, decoded at once."""
    random = np.random.RandomState(5)
    codes = torch.from_numpy(random.randint(0, CODES, (14, BOOKS)))
    wavs, _ = model.model.speech_tokenizer.decode([{"audio_codes": codes}])
    return torch.from_numpy(np.asarray(wavs[0]))


def tokens(model: Any) -> list[Sequence[int]]:
    texts = ("hello the assistant", "Ünïcode, 東京 123!\n\nTwo  spaces", "e\u0301 I'm")
    return [model._tokenize_texts([model._build_assistant_text(t)])[0][0].tolist() for t in texts]


if __name__ == "__main__":
    main()
