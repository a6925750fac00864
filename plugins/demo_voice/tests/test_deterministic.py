"""The same request and seed gives the same bytes in any company, if that is asked for."""

import pytest

from vox_serve.config import EngineConfig
from vox_serve.engine.engine import Engine
from vox_serve.engine.load import load_engine
from vox_serve.engine.messages import Audio, SpeechRequest
from vox_serve.plugins import load_plugins

TEXT = "Hello there, my friend, how are you?"
OTHERS = ["The weather is good today.", "One two three four five.", "Yes, this goes on and on."]


def spoken(engine: Engine, others: list[str]) -> bytes:
    for number, text in enumerate(others):
        sampling = {"temperature": 0.8, "seed": number}
        engine.add(SpeechRequest(f"other {number}", text, sampling=sampling))
        engine.step()
    engine.add(SpeechRequest("mine", TEXT, sampling={"temperature": 0.8, "seed": 5}))
    pcm = b""
    while engine.has_work:
        events = engine.step().events
        pcm += b"".join(e.pcm for e in events if isinstance(e, Audio) and e.request_id == "mine")
    return pcm


@pytest.mark.parametrize("deterministic", [True, False])
def test_bytes_in_company(deterministic: bool) -> None:
    config = EngineConfig(model="demo", max_batch_size=4, deterministic=deterministic)
    engine, _ = load_engine(config, load_plugins())
    alone = spoken(engine, [])
    company = [spoken(engine, OTHERS[:count]) for count in (1, 3)]
    assert all(len(pcm) == len(alone) > 0 for pcm in company)
    # Where it is off, batches of other sizes round otherwise: that is what the mode is for.
    assert all((pcm == alone) == deterministic for pcm in company)
