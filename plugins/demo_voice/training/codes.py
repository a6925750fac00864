"""The codes of all utterances, by the frozen encoder: what decoder and language model learn."""

from __future__ import annotations

import torch
from tqdm import tqdm

from plugins.demo_voice.training.codec_model import CodecModel
from plugins.demo_voice.training.corpus import Corpus
from plugins.demo_voice.training.run import Run, load, save


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
