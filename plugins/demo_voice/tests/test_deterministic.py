"""The same request and seed gives the same bytes in any company, if that is asked for."""

import pytest

from vox_serve.config import EngineConfig
from vox_serve.engine.engine import Engine
from vox_serve.engine.load import load_engine
from vox_serve.engine.messages import Audio, SpeechRequest
from vox_serve.plugins import load_plugins
from vox_serve.testing import watch_frames

TEXT = "Hello there, my friend, how are you?"
OTHERS = ["The weather is good today.", "One two three four five.", "Yes, this goes on and on."]


def spoken(engine: Engine, others: list[str], temperature: float = 0.8) -> bytes:
    for number, text in enumerate(others):
        sampling = {"temperature": 0.8, "seed": number}
        engine.add(SpeechRequest(f"other {number}", text, sampling=sampling))
        engine.step()
    engine.add(SpeechRequest("mine", TEXT, sampling={"temperature": temperature, "seed": 5}))
    pcm = b""
    while engine.has_work:
        events = engine.step().events
        pcm += b"".join(e.pcm for e in events if isinstance(e, Audio) and e.request_id == "mine")
    return pcm


def test_the_default_numbers_give_the_codes_of_full_precision() -> None:
    """The checkpoint's bfloat16 weights are held exactly, and sums are float32 in both."""
    said: dict[str, list[tuple[int, ...]]] = {"auto": [], "float32": []}
    for dtype, codes in said.items():
        engine, _ = load_engine(EngineConfig(model="demo", dtype=dtype), load_plugins())
        watch_frames(engine, lambda _, frame, kept=codes: kept.append(frame.codes))
        assert spoken(engine, [], 0.0)
    assert len(said["auto"]) > 20
    assert said["auto"] == said["float32"]


@pytest.mark.parametrize("deterministic", [True, False])
def test_bytes_in_company(deterministic: bool) -> None:
    config = EngineConfig(model="demo", max_batch_size=4, deterministic=deterministic)
    engine, _ = load_engine(config, load_plugins())
    alone = spoken(engine, [])
    company = [spoken(engine, OTHERS[:count]) for count in (1, 3)]
    assert all(len(pcm) == len(alone) > 0 for pcm in company)
    # Where it is off, batches of other sizes round otherwise: that is what the mode is for.
    assert all((pcm == alone) == deterministic for pcm in company)
