"""Stage 3: the language model, on the codes of stage 2.

The network is that of `vox_serve_csm`, run over whole sequences; only the losses are here.
Matrices learn with Muon (Jordan et al. 2024, in torch), the rest with AdamW.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from plugins.demo_voice.training.codec_model import trapezoid
from plugins.demo_voice.training.codes import read_codes
from plugins.demo_voice.training.config import LABELS_PER_FRAME, PHONES, LmConfig, Recipe
from plugins.demo_voice.training.corpus import IGNORED, Corpus
from plugins.demo_voice.training.csm_json import csm_json
from plugins.demo_voice.training.run import Log, Run, batches, begin, load, parser, save
from plugins.demo_voice.training.turns import Batch, Turns
from vox_serve.model import Place
from vox_serve_csm.config import CsmConfig
from vox_serve_csm.model import CsmNetwork

VALIDATION_BATCHES = 4


class Whole:
    """A `KVView` without a cache: all positions are processed at once, each with its past."""

    def __init__(self, length: int, device: torch.device) -> None:
        causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        self.mask: torch.Tensor | None = causal[None, None]

    def extend(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return keys, values

    def place(self, layer: int) -> Place:
        raise NotImplementedError("this view keeps no cache")


class Learner(nn.Module):
    """The network, and a phoneme head used only for training."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.config: LmConfig = recipe.lm
        self.csm = CsmConfig.from_json(csm_json(recipe))
        self.network = CsmNetwork(self.csm)
        self.phone_head = nn.Linear(self.csm.backbone.hidden_size, LABELS_PER_FRAME * len(PHONES))
        self._start()

    @torch.no_grad()
    def _start(self) -> None:
        for name, parameter in self.network.named_parameters():
            if name.endswith("norm.weight"):
                parameter.fill_(1.0)
            else:
                parameter.normal_(std=0.02)
        # Layers whose output is added to the residual start at zero.
        for stack in (self.network.backbone, self.network.depth):
            for layer in stack.layers:
                layer.attention.output.weight.zero_()  # type: ignore[union-attr,operator]
                layer.feed_forward.down.weight.zero_()  # type: ignore[union-attr,operator]

    def prepare(self, device: torch.device) -> None:
        self.to(device)
        for stack in (self.network.backbone, self.network.depth):
            stack.prepare(device, torch.float32)

    def forward(self, batch: Batch, frame_dropout: float, depth_share: float) -> dict[str, Any]:
        """The losses of a batch; `total` is minimized."""
        net, device = self.network, batch.tokens.device
        length = batch.tokens.shape[1]
        positions = torch.arange(length, device=device)[None]
        embedded = self._embed(batch.tokens, frame_dropout)
        hidden = net.backbone(embedded, positions, Whole(length, device))
        speaking = batch.targets[..., 0] != IGNORED
        state, codes = hidden[speaking], batch.targets[speaking]
        first = F.cross_entropy(net.head(state).float(), codes[:, 0])
        phones = self.phone_head(state).unflatten(1, (len(PHONES), LABELS_PER_FRAME))
        phone = F.cross_entropy(phones.float(), batch.phones[speaking], ignore_index=IGNORED)
        chosen = torch.rand(len(state), device=device) < depth_share
        chosen[0] = True
        rest = self._depth_loss(state[chosen], codes[chosen])
        total = first + rest + self.config.phoneme_weight * phone
        losses = {"total": total, "first": first, "rest": rest, "phone": phone}
        return {name: loss if name == "total" else loss.detach() for name, loss in losses.items()}

    def _embed(self, tokens: torch.Tensor, frame_dropout: float) -> torch.Tensor:
        filled = (tokens >= 0)[..., None]
        ids = tokens.clamp(min=0)
        offsets = torch.arange(self.csm.num_codebooks, device=tokens.device) * self.csm.audio_vocab
        audio = (self.network.audio_embedding(ids[..., :-1] + offsets) * filled[..., :-1, :]).sum(2)
        # Blank some frames, more in some rows than in others, so that the text must be used.
        share = frame_dropout * torch.rand(len(tokens), 1, 1, device=tokens.device)
        ending = (tokens[..., :-1] == self.csm.end_code).all(-1)[..., None]
        kept = (torch.rand(*tokens.shape[:2], 1, device=tokens.device) >= share) | ending
        text = self.network.text_embedding(ids[..., -1]) * filled[..., -1, :]
        embedded: torch.Tensor = audio * kept + text
        return embedded

    def _depth_loss(self, state: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        net, books, vocab = self.network, self.csm.num_codebooks, self.csm.audio_vocab
        offsets = torch.arange(books - 1, device=codes.device) * vocab
        known = net.audio_embedding(codes[:, :-1] + offsets)
        x = net.projector(torch.cat([state[:, None].to(known.dtype), known], dim=1)).float()
        positions = torch.arange(books, device=codes.device)[None]
        depth = net.depth(x, positions, Whole(books, codes.device))[:, 1:]
        heads = torch.stack([head.weight for head in net.depth_heads])
        logits = torch.einsum("nkh,kvh->nkv", depth, heads.to(depth.dtype))
        return F.cross_entropy(logits.flatten(0, 1).float(), codes[:, 1:].flatten())


def optimizers(learner: Learner) -> dict[str, torch.optim.Optimizer]:
    config = learner.config
    matrices = [
        p
        for name, p in learner.network.named_parameters()
        if p.ndim == 2 and (".layers." in name or name.startswith("projector"))
    ]
    chosen = set(matrices)
    others = [p for p in learner.parameters() if p not in chosen]
    muon = torch.optim.Muon(
        matrices, lr=config.muon_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"
    )
    adam = torch.optim.AdamW(others, config.adam_rate, (0.9, 0.95), weight_decay=0.01)
    for optimizer in (muon, adam):
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return {"muon": muon, "adam": adam}


@contextmanager
def _half(run: Run) -> Iterator[None]:
    """Products in bfloat16, if wanted."""
    with ExitStack() as stack:
        stack.enter_context(torch.autocast(run.device.type, torch.bfloat16, enabled=run.half))
        if run.half and run.device.type == "cpu":
            # torch's flash attention takes up to four times as long for sequences this short.
            torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield


@torch.no_grad()
def validate(learner: Learner, turns: Turns, device: torch.device) -> dict[str, float]:
    """Losses on held-out turns, without blanking."""
    learner.eval()
    last = learner.config.steps  # long turns are allowed by then
    found = [learner(turns.batch(last + i).to(device), 0.0, 1.0) for i in range(VALIDATION_BATCHES)]
    learner.train()
    return {
        f"validation_{name}": sum(x[name].item() for x in found) / len(found)
        for name in ("first", "rest", "phone")
    }


def train(run: Run) -> None:
    config, path = run.recipe.lm, run.path("lm", "lm.pt")
    corpus, codes = Corpus(run.path("data", "x").parent), read_codes(run)
    if not codes:
        raise SystemExit("there are no codes; run codec --part codes first")
    turns, unseen = (Turns(corpus, codes, config, validation=v) for v in (False, True))
    torch.manual_seed(config.seed)
    learner = Learner(run.recipe)
    learner.prepare(run.device)
    made = optimizers(learner)
    state = load(path, run.device)
    start = state["step"] if state else 0
    cold = start if state and "muon" not in state else 0
    if state:
        learner.load_state_dict(state["learner"])
        for name in made.keys() & state.keys():  # a restored state has only the learner
            made[name].load_state_dict(state[name])
    log = Log(run.path("lm", "lm.jsonl"), config.steps)
    validation_log = Log(run.path("lm", "validation.jsonl"), 1)
    for step, batch in batches(run, turns.batch, start, config.steps, "lm"):
        torch.manual_seed(config.seed * 7919 + step)
        with _half(run):
            losses = learner(batch.to(run.device), config.frame_dropout, config.depth_share)
        learner.zero_grad(set_to_none=True)
        losses["total"].backward()
        nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        factor = trapezoid(step, config.steps, config.warmup, cold=cold)
        for optimizer in made.values():
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
            optimizer.step()
        log.add(step, losses)
        if (step + 1) % run.recipe.save_every == 0 or step + 1 == config.steps:
            states = {name: optimizer.state_dict() for name, optimizer in made.items()}
            save(path, states | {"learner": learner.state_dict(), "step": step + 1})
            validation_log.add(step, validate(learner, unseen, run.device))


if __name__ == "__main__":
    train(begin(parser(__doc__).parse_args()))
