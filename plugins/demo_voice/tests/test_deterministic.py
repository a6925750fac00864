"""With --deterministic, a request and its seed give the same bytes whatever else runs."""

import pytest

from vox_serve.config import EngineConfig
from vox_serve.engine.engine import Engine
from vox_serve.engine.load import load_engine
from vox_serve.messages import Audio, SpeechRequest
from vox_serve.plugins import load_plugins
from vox_serve.testing import watch_frames
from vox_serve_demo_voice.text import normalise

TEXT = "Hello there, my friend, how are you?"
OTHERS = ["The weather is good today.", "One two three four five.", "Yes, this goes on and on."]


def spoken(engine: Engine, others: list[str], temperature: float = 0.8) -> bytes:
    for number, text in enumerate(others):
        sampling = {"temperature": 0.8, "seed": number}
        engine.add(SpeechRequest(f"other {number}", normalise(text), sampling=sampling))
        engine.step()
    engine.add(
        SpeechRequest("mine", normalise(TEXT), sampling={"temperature": temperature, "seed": 5})
    )
    pcm = b""
    while engine.has_work:
        events = engine.step().events
        pcm += b"".join(e.pcm for e in events if isinstance(e, Audio) and e.request_id == "mine")
    return pcm


def test_the_default_number_formats_give_the_codes_of_full_precision() -> None:
    """Both represent the checkpoint's bfloat16 weights exactly, and sum in float32."""
    said: dict[str, list[tuple[int, ...]]] = {"auto": [], "float32": []}
    for dtype, codes in said.items():
        engine, _ = load_engine(EngineConfig(model="demo", dtype=dtype), load_plugins())
        watch_frames(engine, lambda _, frame, kept=codes: kept.append(frame.codes))
        assert spoken(engine, [], 0.0)
    assert len(said["auto"]) > 20
    assert said["auto"] == said["float32"]


def round_by_height(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a row's result depend on the number of rows and on the length of its prompt's piece.

    Rounding does so slightly on most machines; this makes it large on all machines.
    """
    model, codec = engine.model, engine.model.codec
    prefill, advance, step = model.prefill, model.advance, codec.step

    def rounded_prefill(inputs, lengths, slots, kv):
        shape = inputs["tokens"].shape
        return prefill(inputs, lengths, slots, kv) * (1 + 1e-4 * shape[0] + 1e-5 * shape[1])

    def rounded_advance(codes, slots, kv):
        return advance(codes, slots, kv) * (1 + 1e-4 * len(slots))

    def rounded_step(codes, slots, reset):
        pcm, valid = step(codes, slots, reset)
        return pcm * (1 - 1e-2 * len(slots)), valid

    monkeypatch.setattr(model, "prefill", rounded_prefill)
    monkeypatch.setattr(model, "advance", rounded_advance)
    monkeypatch.setattr(codec, "step", rounded_step)


@pytest.mark.parametrize(
    ("deterministic", "by_height"),
    [
        (True, False),
        (True, True),
        (False, True),
    ],  # without both, it depends on the machine's rounding
)
def test_bytes_do_not_depend_on_other_requests(
    deterministic: bool, by_height: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EngineConfig(model="demo", max_batch_size=4, deterministic=deterministic)
    engine, _ = load_engine(config, load_plugins())
    if by_height:
        round_by_height(engine, monkeypatch)
    alone = spoken(engine, [])
    company = [spoken(engine, OTHERS[:count]) for count in (1, 3)]
    assert len(alone) > 24000
    assert all((pcm == alone) == deterministic for pcm in company)
