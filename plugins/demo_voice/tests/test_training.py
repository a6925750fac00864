"""The recipe's pure parts, and (slow) all of its stages at a tiny size."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from plugins.demo_voice.training.codec_model import CodecModel
from plugins.demo_voice.training.config import RECIPES
from plugins.demo_voice.training.csm_json import csm_json
from plugins.demo_voice.training.export import LARGEST_MB
from plugins.demo_voice.training.lm import Learner
from plugins.demo_voice.training.measure import (
    cepstra,
    listen,
    warped_distance,
    warped_distances,
)
from plugins.demo_voice.training.quantise import Codebook, quantise
from plugins.demo_voice.training.sentences import (
    MOST_CHARACTERS,
    MOST_WORDS,
    held_out,
    sentence,
)
from plugins.demo_voice.training.tokenizer import VOCABULARY, encode, tokenizer_json
from vox_serve_csm.config import CsmConfig
from vox_serve_demo_voice.text import normalise

NUMBERS = range(400)


def test_sentences_keep_their_bounds_and_can_be_spelled() -> None:
    for text in (sentence(n, seed=5) for n in NUMBERS):
        assert 0 < len(text) <= MOST_CHARACTERS
        assert len(text.split()) <= MOST_WORDS
        assert {*encode(normalise(text), 1)} <= {*VOCABULARY.values()}


def test_sentences_depend_on_number_and_seed_alone() -> None:
    first = [sentence(n, seed=5) for n in NUMBERS]
    assert first == [sentence(n, seed=5) for n in NUMBERS]
    assert len(set(first)) > 0.9 * len(first)
    assert first != [sentence(n, seed=6) for n in NUMBERS]
    kinds = {mark: sum(text.endswith(mark) for text in first) for mark in ".?!"}
    assert min(kinds.values()) > 10
    assert any(c.isdigit() for text in first for c in text)


def test_the_split_goes_by_letters_and_keeps_its_share() -> None:
    assert held_out("Hello, there!", 7) == held_out("hello there", 7)
    share = np.mean([held_out(f"sentence {n}", 10) for n in range(5000)])
    assert 0.08 < share < 0.12


def noise(seconds: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    pieces = [
        np.convolve(rng.normal(size=2400), rng.normal(size=9), "same") * 0.03
        for _ in range(round(seconds * 10))
    ]
    return np.concatenate(pieces).astype(np.float32)


def test_distance_is_nothing_for_the_same_and_grows_with_noise() -> None:
    clean = noise(1.0, 1)
    hiss = np.random.default_rng(2).normal(size=len(clean)).astype(np.float32)
    distances = [
        warped_distance(cepstra(clean), cepstra(clean + gain * hiss)) for gain in (0, 0.01, 0.1)
    ]
    assert distances[0] == pytest.approx(0, abs=1e-4)
    assert distances[0] < distances[1] < distances[2]


def test_distance_of_a_known_pair() -> None:
    a, b = np.zeros((3, 13)), np.zeros((3, 13))
    b[:, 0] = 1.0
    assert warped_distance(a, b) == pytest.approx(10 / np.log(10) * np.sqrt(2))


def plain_warping(a: np.ndarray, b: np.ndarray) -> float:
    cost = 10 / np.log(10) * np.sqrt(2 * ((a[:, None] - b[None]) ** 2).sum(-1))
    best = {(-1, -1): (0.0, 0)}
    for i in range(len(a)):
        for j in range(len(b)):
            before = [best.get(c, (np.inf, 0)) for c in ((i - 1, j - 1), (i, j - 1), (i - 1, j))]
            total, steps = min(before, key=lambda found: found[0])
            best[i, j] = (total + cost[i, j], steps + 1)
    total, steps = best[len(a) - 1, len(b) - 1]
    return total / steps


def test_warping_is_the_plain_recursion_for_many_at_once() -> None:
    rng = np.random.default_rng(3)
    a = rng.normal(size=(9, 13))
    others = [rng.normal(size=(length, 13)) for length in (5, 9, 14, 1)]
    expected = [plain_warping(a, b) for b in others]
    np.testing.assert_allclose(warped_distances(a, others), expected)


def test_a_slower_reading_is_near_and_another_sentence_far() -> None:
    one, other = cepstra(noise(1.0, 4)), cepstra(noise(1.0, 5))
    slower = np.repeat(one, 2, axis=0)
    assert warped_distance(one, slower) == pytest.approx(0, abs=1e-4)
    assert warped_distance(one, other) > 5


def test_what_a_listener_would_hear() -> None:
    t = np.arange(24000) / 24000
    tone = 0.01 * np.sin(2 * np.pi * 1000 * t)
    speech = np.where(t < 0.5, 0.5, 0) * np.sin(2 * np.pi * 200 * t)
    heard = listen((speech + tone).astype(np.float32))
    assert heard.floor_db == pytest.approx(-43, abs=1)
    assert heard.tone_db > 40
    assert heard.tail_db == pytest.approx(-43, abs=1)
    assert 0.5 < heard.peak < 0.52


def test_codebooks_learn_and_leave_the_reserved_entry_alone() -> None:
    torch.manual_seed(0)
    centres = torch.randn(15, 4) * 5
    x = centres[torch.randint(15, (600,))] + 0.01 * torch.randn(600, 4)
    book = Codebook(16, 4, reserved=1)
    book.k_means(x)
    latent = x.T[None].clone().requires_grad_()
    for _ in range(50):
        quantised, codes = quantise(torch.nn.ModuleList([book]), latent, learn=True)
    assert int(codes.min()) >= 1
    assert float((quantised - latent).square().mean().detach()) < 5  # of a variance of 25
    quantised.sum().backward()
    assert latent.grad is not None
    assert torch.equal(latent.grad, torch.ones_like(latent))


@pytest.mark.parametrize("name", RECIPES)
def test_every_size_makes_a_configuration_that_loads(name: str) -> None:
    config = CsmConfig.from_json(csm_json(RECIPES[name]))
    assert config.num_codebooks == 4
    assert config.text_vocab == len(tokenizer_json()["model"]["vocab"])


@pytest.mark.parametrize("name", RECIPES)
def test_every_size_is_small_enough_to_ship(name: str) -> None:
    recipe = RECIPES[name]
    language = sum(p.numel() for p in Learner(recipe).network.parameters())
    codec = sum(t.numel() for t in CodecModel(recipe.codec).mimi.state_dict().values())
    assert 2 * (language + codec) / 1e6 < LARGEST_MB - 0.1


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not shutil.which("flite"), reason="flite is the teacher")
def test_all_stages_follow_each_other_at_a_tiny_size(tmp_path: Path) -> None:
    def stage(name: str, *arguments: str) -> None:
        command = [sys.executable, "-m", f"plugins.demo_voice.training.{name}", *arguments]
        subprocess.run(command, check=True)

    common = ("--size", "tiny", "--work", str(tmp_path), "--device", "cpu")
    stage("data", *common, "--jobs", "1")
    for name in ("codec", "lm", "export"):
        stage(name, *common)
    stage("lm", *common)  # done already: nothing is trained again
    checkpoint, figures = tmp_path / "tiny" / "checkpoint", tmp_path / "figures.json"
    few = ("--sentences", "2", "--codec", "1", "--json", str(figures))
    stage("evaluate", "--checkpoint", str(checkpoint), *few)
    assert json.loads(figures.read_text())["sentences"] == 2
