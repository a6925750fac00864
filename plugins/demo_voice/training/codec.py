"""Stage 2: the codec, in three consecutive parts.

encoder   Encoder and quantiser, with no waveform decoder: small heads predict the log-mel and the
          pitch of each frame, codebook 0 also predicts the teacher's phonemes.  At first,
          noise and a limit on the latents' information replace quantisation; then the codebooks
          are initialized by k-means and learn by moving averages.
codes     Encodes all utterances into `codes/`, which is all that the language model needs.
decoder   The waveform decoder on the frozen codes, with spectral losses.  Later also with what
          the frozen encoder hears, and discriminators that learn to tell its sound from the
          teacher's.

Each part saves its state and resumes from it.  Processes that `torchrun` starts share the work.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F
from tqdm import tqdm

from plugins.demo_voice.training.codec_model import (
    MEL_BANDS,
    MEL_HOPS,
    OCTAVE_SHARE,
    CodecModel,
    rate,
    scaled_pitch,
    trapezoid,
)
from plugins.demo_voice.training.config import FRAME_SIZE, PITCHES_PER_FRAME
from plugins.demo_voice.training.corpus import IGNORED, Corpus
from plugins.demo_voice.training.judges import Judges
from plugins.demo_voice.training.quantise import Codebook, quantise
from plugins.demo_voice.training.run import (
    Log,
    Run,
    average_gradients,
    batches,
    begin,
    load,
    parser,
    save,
    wait_for_all,
)
from plugins.demo_voice.training.spectra import log_mel, period_loss, spectral_loss

KMEANS_VECTORS = 16000
JUDGED_FRAMES = 8
"""How much of a crop's end the judges see; they cost four times as much as the decoder."""
SEMITONES = 12 * OCTAVE_SHARE


def draw(
    lengths: list[int], step: int, seed: int, batch: int, frames: int
) -> list[tuple[int, int]]:
    """Utterances (with their numbers of frames) and first frames of a step's crops."""
    rng = torch.Generator().manual_seed(seed * 1_000_003 + step)
    chosen: list[tuple[int, int]] = []
    for number in torch.randint(len(lengths), (batch,), generator=rng).tolist():
        # A little beyond both ends, so that beginnings and ends are as frequent as the rest.
        spare = lengths[number] - frames
        first = int(torch.randint(-3, max(0, spare) + 4, (1,), generator=rng))
        chosen.append((number, min(max(first, 0), max(0, spare))))
    return chosen


def crops(corpus: Corpus, chosen: list[tuple[int, int]], frames: int) -> torch.Tensor:
    return torch.stack([corpus.sound(n, first, frames) for n, first in chosen])


def pitches(corpus: Corpus, chosen: list[tuple[int, int]], frames: int) -> torch.Tensor:
    return torch.stack([corpus.pitch(n, first, frames) for n, first in chosen])


def labels(corpus: Corpus, chosen: list[tuple[int, int]], frames: int) -> torch.Tensor:
    out = torch.full((len(chosen), frames, 4), IGNORED)
    for row, (number, first) in zip(out, chosen, strict=True):
        found = corpus.labels(number)[first : first + frames]
        row[: len(found)] = found
    return out


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
    """k-means of all codebooks, each on the residual of the previous ones."""
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
    config, path = run.recipe.codec, run.path("codec", "encoder.pt")
    parts = ("encoder", "encoder_transformer", "downsample", "quantizer")
    learning = [p for part in parts for p in getattr(model.mimi, part).parameters()]
    for head in (model.mel_head, model.pitch_head, model.phone_head, model.all_phones_head):
        learning += head.parameters()
    optimizer = torch.optim.AdamW(learning, config.learning_rate, (0.9, 0.98), weight_decay=1e-2)
    state = load(path, run.device)
    start = 0
    if state:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    log = Log(run.log("codec", "encoder.jsonl"), config.encoder_steps)
    lengths = [u.frames for u in corpus.utterances]
    quantise_from = int(config.quantise_at * config.encoder_steps)
    frames = config.crop_frames

    def drawn_for(step: int) -> list[tuple[int, int]]:
        return draw(lengths, step, config.seed, config.batch, frames)

    def given(step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        drawn = drawn_for(step)[run.rank :: run.world]
        return (
            crops(corpus, drawn, frames),
            labels(corpus, drawn, frames),
            pitches(corpus, drawn, frames),
        )

    model.train()
    for step, batch in batches(run, given, start, config.encoder_steps, "encoder"):
        torch.manual_seed(config.seed * 7919 + step)
        if step == quantise_from:
            # All processes use the same sound, so that their codebooks are the same.
            start_codebooks(
                model, lambda number: crops(corpus, drawn_for(number), frames).to(run.device)
            )
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


def follow(optimizer: torch.optim.Optimizer, loss: torch.Tensor, rate_now: float) -> None:
    """One optimizer step with a clipped gradient norm."""
    for group in optimizer.param_groups:
        group["lr"] = rate_now
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    learning = [p for g in optimizer.param_groups for p in g["params"]]
    average_gradients(learning)
    torch.nn.utils.clip_grad_norm_(learning, 1.0)
    optimizer.step()


def fingerprint(model: CodecModel) -> float:
    """A fingerprint of the encoder, because codes are valid only for the encoder that made them."""
    books = (*model.semantic, *model.acoustic)
    return sum(float(book.entries.cpu().double().sum()) for book in books)


def load_encoder(run: Run, model: CodecModel) -> None:
    """The trained encoder, frozen.  Exits with a message if there is none."""
    state = load(run.path("codec", "encoder.pt"), run.device)
    if not state or state["step"] < run.recipe.codec.encoder_steps:
        raise SystemExit("the encoder is not trained yet; run codec --part encoder first")
    model.load_state_dict(state["model"])
    model.freeze_encoder()


def make_codes(run: Run, corpus: Corpus, model: CodecModel) -> None:
    """`codes/NNNNN.pt`: int16 codes `[K, F]` of a shard's utterances, in the corpus's order."""
    load_encoder(run, model)
    model.eval()
    model.hasten()
    shards = list(enumerate(corpus.shards))[run.rank :: run.world]
    for shard, numbers in tqdm(shards, desc="codes"):
        path = run.path("codes", f"{shard:05d}.pt")
        if path.is_file():
            continue
        made: dict[int, torch.Tensor] = {}
        # Similar lengths together; padding does not matter, because the encoder is causal.
        ordered = sorted(numbers, key=lambda n: corpus.utterances[n].frames)
        for at in range(0, len(ordered), 8):
            some = ordered[at : at + 8]
            longest = corpus.utterances[some[-1]].frames
            sound = torch.stack([corpus.sound(n, 0, longest) for n in some]).to(run.device)
            for number, codes in zip(some, model.encode(sound).cpu(), strict=True):
                made[number] = codes[:, : corpus.utterances[number].frames].short().clone()
        save(path, {"codes": [made[n] for n in numbers], "encoder": fingerprint(model)})


def read_codes(run: Run, encoder: float | None = None) -> list[torch.Tensor]:
    """Codes `[K, F]` of every utterance that has some, in the corpus's order.

    Exits if they were made by different encoders, or not by this one.
    """
    found: list[torch.Tensor] = []
    for path in sorted(run.path("codes", "x").parent.glob("*.pt")):
        state = load(path) or {}
        if encoder is not None and state["encoder"] != encoder:
            raise SystemExit(
                f"{path}: made by another encoder; delete {path.parent} and encode again"
            )
        encoder = state["encoder"]
        found += state["codes"]
    return found


def train_decoder(run: Run, corpus: Corpus, model: CodecModel) -> None:
    config, path = run.recipe.codec, run.path("codec", "decoder.pt")
    load_encoder(run, model)
    codes = read_codes(run, fingerprint(model))
    lengths = [c.shape[1] for c in codes]
    parts = ("upsample", "decoder_transformer", "decoder")
    learning = [p for part in parts for p in getattr(model.mimi, part).parameters()]
    optimizer = torch.optim.AdamW(learning, config.learning_rate, (0.9, 0.98), weight_decay=1e-2)
    judge = Judges(config.judge_channels).to(run.device)
    judge_optimizer = torch.optim.AdamW(judge.parameters(), 3e-4, (0.8, 0.99))
    holders: dict[str, Any] = {"model": model, "judge": judge}
    holders |= {"optimizer": optimizer, "judge_optimizer": judge_optimizer}
    state = load(path, run.device)
    start = state["step"] if state else 0
    cold = start if state and "optimizer" not in state else 0
    for name in (state or {}).keys() & holders.keys():  # a restored state has only the model
        assert state
        holders[name].load_state_dict(state[name])
    log = Log(run.log("codec", "decoder.jsonl"), config.decoder_steps)
    frames, judged_from = config.decoder_crop_frames, config.adversarial_at * config.decoder_steps

    def given(step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        drawn = draw(lengths, step, config.seed + 1, config.batch, frames)[run.rank :: run.world]
        some_codes = torch.zeros(len(drawn), config.num_codebooks, frames, dtype=torch.long)
        known = torch.ones(len(drawn), frames * FRAME_SIZE)
        for row, (number, first) in enumerate(drawn):
            some = codes[number][:, first : first + frames]
            some_codes[row, :, : some.shape[1]] = some
            known[row, some.shape[1] * FRAME_SIZE :] = 0
            # The sound of a crop's first frame depends on frames outside the crop.
            known[row, : FRAME_SIZE * (first > 0)] = 0
        return some_codes, crops(corpus, drawn, frames), known

    model.train()
    for step, batch in batches(run, given, start, config.decoder_steps, "decoder"):
        some_codes, target, known = (x.to(run.device) for x in batch)
        made, target = model.decode(some_codes) * known, target * known
        part = slice(-JUDGED_FRAMES * FRAME_SIZE, None)
        shown = made[:, part], target[:, part]
        losses = {"spectral": spectral_loss(made, target), "period": period_loss(made, target)}
        losses["total"] = losses["spectral"] + config.period_weight * losses["period"]
        if step >= judged_from:
            losses["heard"] = heard_loss(model, *shown, known[:, part])
            losses["total"] = losses["total"] + config.heard_weight * losses["heard"]
            losses |= adversarial(judge, judge_optimizer, *shown, losses["total"])
        factor = trapezoid(step, config.decoder_steps, fall=config.decoder_fall, cold=cold)
        follow(optimizer, losses["total"], config.learning_rate * factor)
        model.even_upsampling()
        log.add(step, losses)
        saves = (step + 1) % run.recipe.save_every == 0 or step + 1 == config.decoder_steps
        if saves and run.rank == 0:
            save(path, {n: h.state_dict() for n, h in holders.items()} | {"step": step + 1})


def heard_loss(
    model: CodecModel, made: torch.Tensor, target: torch.Tensor, known: torch.Tensor
) -> torch.Tensor:
    """How differently the frozen encoder hears the made sound and the target `[B, N]`.

    Its latents, and what its heads read in them: pitch and phonemes, which spectra of an untrained
    decoder's sound show only where harmonics already overlap.
    """
    with torch.no_grad():
        theirs = model.heard(target)
    ours = model.heard(made)
    frames = known.view(len(known), -1, FRAME_SIZE).amin(2)
    steps = frames.repeat_interleave(PITCHES_PER_FRAME, 1)
    latents = [
        ((ours[name] - theirs[name]).abs().mean(1) * frames).sum()
        / (theirs[name].abs().mean(1) * frames).sum()
        for name in ("semantic", "acoustic")
    ]
    voiced = theirs["voicing"].sigmoid() * steps
    height = ((ours["height"] - theirs["height"]).abs() * voiced).sum() / voiced.sum().clamp(min=1)
    voicing = F.binary_cross_entropy_with_logits(
        ours["voicing"], theirs["voicing"].sigmoid(), steps
    )
    phones = (theirs["phones"].exp() * (theirs["phones"] - ours["phones"])).sum(1).mean(2)
    phone = (phones * frames).sum() / frames.sum()
    return sum(latents) + height + 0.3 * voicing + 0.3 * phone


def adversarial(
    judge: Judges,
    optimizer: torch.optim.Optimizer,
    made: torch.Tensor,
    target: torch.Tensor,
    loss: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Train the judge (hinge loss), then add its scores and feature matching to the loss."""
    real, theirs = judge(target)
    fake = judge(made.detach())[0]
    pairs = list(zip(real, fake, strict=True))
    doubt = torch.stack([F.relu(1 - r).mean() + F.relu(1 + f).mean() for r, f in pairs]).mean()
    optimizer.zero_grad(set_to_none=True)
    doubt.backward()  # type: ignore[no-untyped-call]
    average_gradients(judge.parameters())
    optimizer.step()
    scores, ours = judge(made)
    fooled = -torch.stack([score.mean() for score in scores]).mean()
    # The target's features are those before the judge's step, which saves a pass.
    fixed = [features.detach() for features in theirs]
    apart = [(a - b).abs().mean() / b.abs().mean() for a, b in zip(ours, fixed, strict=True)]
    features = torch.stack(apart).mean()
    total = loss + 0.1 * fooled + features
    return {"total": total, "judge": doubt.detach(), "features": features.detach()}


def main() -> None:
    flags = parser(__doc__)
    parts = {"encoder": train_encoder, "codes": make_codes, "decoder": train_decoder}
    flags.add_argument("--part", choices=[*parts, "all"], default="all")
    options = flags.parse_args()
    run = begin(options)
    if run.recipe.codec.batch % run.world:
        raise SystemExit(
            f"{run.world} processes cannot share a batch of {run.recipe.codec.batch} evenly"
        )
    corpus = Corpus(run.path("data", "x").parent)
    for name, part in parts.items():
        if options.part in (name, "all"):
            torch.manual_seed(run.recipe.codec.seed)
            part(run, corpus, CodecModel(run.recipe.codec, run.half).to(run.device))
            wait_for_all()


if __name__ == "__main__":
    main()
