"""The waveform decoder, trained on the frozen encoder's codes with spectral losses.

Later also with what the frozen encoder hears, and with discriminators that learn to tell its sound
from the teacher's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional as F

from plugins.demo_voice.training.codec_model import CodecModel, trapezoid
from plugins.demo_voice.training.codes import fingerprint, load_encoder, read_codes
from plugins.demo_voice.training.config import FRAME_SIZE, PITCHES_PER_FRAME
from plugins.demo_voice.training.corpus import Corpus
from plugins.demo_voice.training.judges import Judges
from plugins.demo_voice.training.run import Log, Run, average_gradients, batches, load, save
from plugins.demo_voice.training.spectra import period_loss, spectral_loss
from plugins.demo_voice.training.steps import crops, draw, follow

HEARD_FRAMES, JUDGED_FRAMES = 8, 4
"""How much of a crop's end the encoder hears and the judges see; for the same length, the judges
cost eight times as much as the decoder."""


PARTS = ("upsample", "decoder_transformer", "decoder")
"""Of Mimi: what this stage trains."""


def train_decoder(run: Run, corpus: Corpus, model: CodecModel) -> None:
    config, path = run.recipe.codec, run.path("codec", "decoder.pt")
    load_encoder(run, model)
    codes = read_codes(run, fingerprint(model))
    lengths = [c.shape[1] for c in codes]
    learning = [p for part in PARTS for p in getattr(model.mimi, part).parameters()]
    optimizer = torch.optim.AdamW(learning, config.learning_rate, (0.9, 0.98), weight_decay=1e-2)
    judge = Judges(config.judge_channels).to(run.device)
    judge_optimizer = torch.optim.AdamW(judge.parameters(), 3e-4, (0.8, 0.99))
    holders: dict[str, Any] = {"model": model, "judge": judge}
    holders |= {"optimizer": optimizer, "judge_optimizer": judge_optimizer}
    state = load(path, run.device)
    start = state["step"] if state else 0
    cold = start if state and "optimizer" not in state else 0
    if state:
        load_own_weights(model, state["model"])
        for name in state.keys() & holders.keys() - {"model"}:  # a restored state has none
            holders[name].load_state_dict(state[name])
    log = Log(run.log("codec", "decoder.jsonl"), config.decoder_steps)
    frames, judged_from = config.decoder_crop_frames, config.adversarial_at * config.decoder_steps
    questions = [n for n in range(len(codes)) if corpus.utterances[n].text.endswith("?")]

    def given(step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        drawn = draw(lengths, step, config.seed + 1, config.batch, frames)
        if questions:  # One crop ends a question, because its rise is rare in all speech.
            asked = questions[step % len(questions)]
            drawn[0] = asked, max(0, lengths[asked] - frames)
        drawn = drawn[run.rank :: run.world]
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
        heard, judged = (
            slice(-count * FRAME_SIZE, None) for count in (HEARD_FRAMES, JUDGED_FRAMES)
        )
        losses = {"spectral": spectral_loss(made, target), "period": period_loss(made, target)}
        losses["total"] = losses["spectral"] + config.period_weight * losses["period"]
        if step >= judged_from:
            losses["heard"] = heard_loss(model, *(x[:, heard] for x in (made, target, known)))
            losses["total"] = losses["total"] + config.heard_weight * losses["heard"]
            shown = made[:, judged], target[:, judged]
            losses |= adversarial(judge, judge_optimizer, *shown, losses["total"])
        factor = trapezoid(step, config.decoder_steps, fall=config.decoder_fall, cold=cold)
        follow(optimizer, losses["total"], config.learning_rate * factor)
        model.even_upsampling()
        log.add(step, losses)
        saves = (step + 1) % run.recipe.save_every == 0 or step + 1 == config.decoder_steps
        if saves and run.rank == 0:
            save(path, {n: h.state_dict() for n, h in holders.items()} | {"step": step + 1})


def load_own_weights(model: CodecModel, weights: Mapping[str, torch.Tensor]) -> None:
    """Load `PARTS` alone; all else is the encoder's, and a restored state has untrained heads."""
    own = tuple(f"mimi.{part}." for part in PARTS)
    found = {name: w for name, w in weights.items() if name.startswith(own)}
    model.load_state_dict(found, strict=False)


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
