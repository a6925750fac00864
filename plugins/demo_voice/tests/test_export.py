"""The exported checkpoint behaves like the trained modules that it came from."""

from __future__ import annotations

from pathlib import Path

import attrs
import numpy as np
import pytest
import torch
from transformers import CsmForConditionalGeneration

from plugins.demo_voice.training.codec_model import CodecModel
from plugins.demo_voice.training.config import RECIPES
from plugins.demo_voice.training.export import language_tensors, write
from plugins.demo_voice.training.lm import Learner, Whole
from plugins.demo_voice.training.run import Run
from plugins.demo_voice.training.speaking import through_codec
from plugins.demo_voice.training.tokenizer import encode
from vox_serve import LoadOptions
from vox_serve_csm.checkpoint import load_model
from vox_serve_csm.model import CsmModel

TEXT = "it's a test, no more."


@attrs.frozen
class Exported:
    directory: Path
    learner: Learner
    codec: CodecModel
    served: CsmModel


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    directory = tmp_path_factory.mktemp("voice")
    run = Run(RECIPES["tiny"], directory, torch.device("cpu"))
    torch.manual_seed(0)
    learner, codec = Learner(run.recipe), CodecModel(run.recipe.codec).eval()
    with torch.no_grad():
        for module in (learner, codec.mimi):
            for parameter in module.parameters():
                # No weight may be zero, or a lost tensor would not be detected.
                parameter.add_(0.05 * torch.randn_like(parameter))
                parameter.copy_(parameter.bfloat16().float())
        for book in (*codec.semantic, *codec.acoustic):
            book.entries.normal_()
            book._reserve()
            book.entries.copy_(book.entries.bfloat16().float())
    codec.freeze_encoder()
    write(directory, run, language_tensors(learner), codec)
    learner.prepare(run.device)
    served = load_model(LoadOptions(directory, "cpu", "float32"))
    served.codec.allocate(1)
    return Exported(directory, learner.eval(), codec, served)


def sound() -> torch.Tensor:
    return 0.1 * torch.randn(1920 * 12, generator=torch.Generator().manual_seed(1))


def test_the_served_codec_encodes_like_the_trained_one(exported: Exported) -> None:
    ours = exported.codec.encode(sound()[None])[0]
    assert (exported.served.codec.encode(sound()) == ours).float().mean() > 0.98
    assert ours[0].min() > 0  # a zero there would end an utterance


def test_the_served_codec_decodes_like_the_trained_one(exported: Exported) -> None:
    codes = exported.served.codec.encode(sound())
    with torch.no_grad():
        trained = exported.codec.decode(codes[None])[0].numpy()
    streamed = through_codec(exported.served.codec, sound().numpy())
    np.testing.assert_allclose(streamed, trained, atol=1e-4 * np.abs(trained).max())


def test_transformers_returns_the_logits_of_the_trained_network(exported: Exported) -> None:
    reference = CsmForConditionalGeneration.from_pretrained(
        exported.directory, dtype=torch.float32
    ).eval()
    ids = encode(TEXT, 1)
    learner = exported.learner
    tokens = torch.full((1, len(ids), learner.csm.num_codebooks + 1), -1)
    tokens[0, :, -1] = torch.tensor(ids)
    with torch.no_grad():
        expected = reference(torch.tensor([ids])).logits[0, -1]
        embedded = learner._embed(tokens, 0.0)
        positions = torch.arange(len(ids))[None]
        hidden = learner.network.backbone(embedded, positions, Whole(len(ids), torch.device("cpu")))
        found = learner.network.head(hidden)[0, -1]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_every_weight_of_the_network_is_exported(exported: Exported) -> None:
    served = dict(exported.served.network.named_parameters())
    for name, parameter in exported.learner.network.named_parameters():
        assert torch.equal(served[name], parameter), name


def test_the_tokenizer_returns_the_ids_of_the_training(exported: Exported) -> None:
    prompt = exported.served.prompt(TEXT, exported.served.voices[1], context=())
    assert prompt.inputs["tokens"][:, -1].tolist() == encode(TEXT, 1)
