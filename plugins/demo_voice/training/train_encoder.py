"""The encoder and its codebooks, trained with no waveform decoder.

Small heads predict the log-mel and the pitch of each frame, codebook 0 also predicts the teacher's
phonemes.  At first, noise and a limit on the latents' information replace quantisation; then the
codebooks are initialized by k-means and learn by moving averages.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from plugins.demo_voice.training.codec_model import (
    MEL_BANDS,
    MEL_HOPS,
    OCTAVE_SHARE,
    CodecModel,
    rate,
    scaled_pitch,
    trapezoid,
)
from plugins.demo_voice.training.config import FRAME_SIZE
from plugins.demo_voice.training.corpus import IGNORED, Corpus
from plugins.demo_voice.training.quantise import Codebook, quantise
from plugins.demo_voice.training.run import Log, Run, batches, load, save
from plugins.demo_voice.training.spectra import log_mel
from plugins.demo_voice.training.steps import crops, draw, follow, labels, pitches

KMEANS_VECTORS = 16000
SEMITONES = 12 * OCTAVE_SHARE


def encoder_loss(
    model: CodecModel,
    sound: torch.Tensor,
    phones: torch.Tensor,
    hertz: torch.Tensor,
    quantised: bool,
) -> dict[str, torch.Tensor]:
    """The encoder's losses on crops `[B, N]` with labels `[B, F, 4]` and pitch `[B, F * 8]`.

    `total` is minimized.
    """
    semantic, acoustic = model.latents(sound)
    config = model.config
    # A codebook of N entries can carry log N nats.
    semantic_nats = 0.9 * torch.tensor(float(config.codebook_size)).log()
    excess = F.relu(rate(semantic) - semantic_nats) + F.relu(rate(acoustic) - config.rate_nats)
    if quantised:
        s, _ = quantise(model.semantic, semantic, learn=model.training)
        a, _ = quantise(model.acoustic, acoustic, learn=model.training)
        commitment = sum(
            (x - q.detach()).square().sum(1).mean() for x, q in ((semantic, s), (acoustic, a))
        )
    else:
        s = semantic + torch.randn_like(semantic)
        a = acoustic + torch.randn_like(acoustic)
        commitment = excess
    s, a = model.project(s, a)
    target = log_mel(sound, 1024, FRAME_SIZE // MEL_HOPS, MEL_BANDS)[..., :-1]
    mel = (model.predict_mel(s + a) - target).abs().mean()
    height, voicing = model.predict_pitch(s + a)
    voiced = hertz > 0
    off = (height - scaled_pitch(hertz)).abs()[voiced].mean() if voiced.any() else height.sum() * 0
    voice = F.binary_cross_entropy_with_logits(voicing, voiced.float())
    logits = model.predict_phones(s)
    phone = F.cross_entropy(logits, phones, ignore_index=IGNORED)
    clearer = model.predict_all_phones(s + a)
    clear = F.cross_entropy(clearer, phones, ignore_index=IGNORED)
    total = mel + config.phone_weight * (phone + clear)
    total = total + config.pitch_weight * (off + 0.3 * voice)
    total = total + 0.02 * torch.as_tensor(commitment)

    def error(logits: torch.Tensor) -> torch.Tensor:
        return (logits.argmax(1) != phones)[phones != IGNORED].float().mean()

    return {
        "total": total,
        "mel": mel.detach(),
        "phone": phone.detach(),
        "phone_error": error(logits),
        "all_phones": clear.detach(),
        "all_phones_error": error(clearer),
        "semitones": SEMITONES * off.detach(),
        "voicing_error": ((voicing > 0) != voiced).float().mean(),
        "rate": rate(acoustic).detach(),
        "commitment": torch.as_tensor(commitment).detach(),
    }


@torch.no_grad()
def start_codebooks(model: CodecModel, sounds: Callable[[int], torch.Tensor]) -> None:
    """k-means of all codebooks, each on the residual of the previous ones.

    All processes must give the same `sounds`, so that their codebooks are the same.
    """
    vectors: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    while sum(map(len, vectors[0])) < KMEANS_VECTORS:
        for kept, latent in zip(vectors, model.latents(sounds(len(vectors[0]))), strict=True):
            kept.append(latent.transpose(1, 2).flatten(0, 1))
    for books, kept in ((model.semantic, vectors[0]), (model.acoustic, vectors[1])):
        residual = torch.cat(kept)
        for book in books:
            assert isinstance(book, Codebook)
            book.k_means(residual)
            residual = residual - book.entries[book.nearest(residual)]


def train_encoder(run: Run, corpus: Corpus, model: CodecModel) -> None:
    """Train encoder, codebooks and heads; of a restored encoder, the heads alone."""
    config, path = run.recipe.codec, run.path("codec", "encoder.pt")
    state = load(path, run.device)
    if state and "optimizer" not in state:
        train_heads(run, corpus, model, state)
        return
    parts = ("encoder", "encoder_transformer", "downsample", "quantizer")
    learning = [p for part in parts for p in getattr(model.mimi, part).parameters()]
    learning += model.head_parameters()
    optimizer = torch.optim.AdamW(learning, config.learning_rate, (0.9, 0.98), weight_decay=1e-2)
    start = 0
    if state:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    log = Log(run.log("codec", "encoder.jsonl"), config.encoder_steps)
    examples = Examples(run, corpus)
    quantise_from = int(config.quantise_at * config.encoder_steps)
    model.train()
    for step, batch in batches(run, examples.batch, start, config.encoder_steps, "encoder"):
        torch.manual_seed(config.seed * 7919 + step)
        if step == quantise_from:
            start_codebooks(model, examples.sound)
        sound, phones, hertz = (x.to(run.device) for x in batch)
        losses = encoder_loss(model, sound, phones, hertz, quantised=step >= quantise_from)
        follow(
            optimizer, losses["total"], config.learning_rate * trapezoid(step, config.encoder_steps)
        )
        log.add(step, losses)
        saves = (step + 1) % run.recipe.save_every == 0 or step + 1 == config.encoder_steps
        if saves and run.rank == 0:
            saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            save(path, saved | {"step": step + 1})


def train_heads(run: Run, corpus: Corpus, model: CodecModel, state: dict[str, Any]) -> None:
    """Teach the heads of a restored encoder, which a checkpoint lacks; the encoder stays fixed.

    The waveform decoder learns from what they read.  Exits if more steps of the encoder are wanted,
    because the codebooks' averages are lost, too.
    """
    config = run.recipe.codec
    if state["step"] < config.encoder_steps:
        raise SystemExit("a restored encoder cannot be trained further; lower `encoder_steps`")
    if state.get("heads_trained"):
        return
    model.load_state_dict(state["model"])
    model.freeze_encoder()
    model.eval()
    optimizer = torch.optim.AdamW(model.head_parameters(), betas=(0.9, 0.98), weight_decay=1e-2)
    log = Log(run.log("codec", "heads.jsonl"), config.head_steps)
    examples = Examples(run, corpus)
    for step, batch in batches(run, examples.batch, 0, config.head_steps, "heads"):
        losses = encoder_loss(model, *(x.to(run.device) for x in batch), quantised=True)
        rate_now = config.learning_rate * trapezoid(step, config.head_steps)
        follow(optimizer, losses["total"], rate_now)
        log.add(step, losses)
    if run.rank == 0:
        saved = {"model": model.state_dict(), "step": state["step"], "heads_trained": True}
        save(run.path("codec", "encoder.pt"), saved)


class Examples:
    """Crops of sound with their phonemes and pitch, a share of each batch for each process."""

    def __init__(self, run: Run, corpus: Corpus) -> None:
        self._run, self._corpus = run, corpus
        self._lengths = [u.frames for u in corpus.utterances]
        self._frames = run.recipe.codec.crop_frames

    def _drawn(self, step: int) -> list[tuple[int, int]]:
        config = self._run.recipe.codec
        return draw(self._lengths, step, config.seed, config.batch, self._frames)

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Sound `[B, N]`, phonemes `[B, F, 4]` and pitch `[B, F * 8]` of a step's crops."""
        drawn = self._drawn(step)[self._run.rank :: self._run.world]
        return (
            crops(self._corpus, drawn, self._frames),
            labels(self._corpus, drawn, self._frames),
            pitches(self._corpus, drawn, self._frames),
        )

    def sound(self, step: int) -> torch.Tensor:
        """A whole step's crops `[B, N]`, the same in all processes."""
        return crops(self._corpus, self._drawn(step), self._frames).to(self._run.device)
