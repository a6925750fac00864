"""Models whose frames are latents: floats, seeded noise, own state and own parameters."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch

from tests.glide import GlideModel, GlideParameters
from vox_serve.config import EngineConfig
from vox_serve.engine.engine import Engine
from vox_serve.engine.sampler import SlotSampler
from vox_serve.errors import ConfigError, InvalidRequest
from vox_serve.messages import Failed, Finished, SpeechRequest
from vox_serve.sampling import Parameters, SamplingParams
from vox_serve.testing import ModelConformance, watch_frames

TEXT = "three short words"


class TestGlide(ModelConformance):
    texts = ("one two three", "a b", "seven longer words stand here in line")
    greedy: ClassVar = {"noise_level": 0.0}
    drawn: ClassVar = {"noise_level": 1.0}

    def load(self, device: str) -> GlideModel:
        return GlideModel()


class TestGlideInTheGivenVoice(TestGlide):
    """The same suite with a voice that is stored as keys and values."""

    def _request(self, name: str, text: str, **fields: Any) -> SpeechRequest:
        return super()._request(name, text, voice="given", **fields)


def engine(**settings: Any) -> Engine:
    return Engine(GlideModel(), EngineConfig(model="glide", max_batch_size=3, **settings))


def spoken(engine: Engine, **fields: Any) -> tuple[list[tuple[float, ...]], list[Any]]:
    """The latents of one request, and its events."""
    latents: list[tuple[float, ...]] = []
    watch_frames(engine, lambda _, frame: None if frame.end else latents.append(frame.codes))
    engine.add(SpeechRequest("x", TEXT, **fields))
    events = []
    while engine.has_work:
        events += engine.step().events
    return latents, events


def test_latents_reach_the_codec_and_the_host_unchanged():
    latents, events = spoken(engine(), sampling={"noise_level": 0.0})
    assert latents[0] == pytest.approx(torch.sin(torch.tensor([15.0, 0.3])).tolist())
    assert isinstance(events[-1], Finished)
    assert events[-1].frames == len(latents) == 3 + 15 % 4


def test_a_voice_of_keys_and_values_precedes_the_text():
    plain, _ = spoken(engine(), sampling={"noise_level": 0.0})
    given, _ = spoken(engine(), sampling={"noise_level": 0.0}, voice="given")
    assert given[0] == pytest.approx(torch.sin(torch.tensor([21.0, 6.3])).tolist(), abs=1e-5)
    assert given != plain


def test_a_parameter_set_by_one_request_changes_only_that_request():
    one = engine()
    default, _ = spoken(engine(), sampling={"seed": 1})
    latents: dict[str, list[tuple[float, ...]]] = {}
    watch_frames(one, lambda s, f: latents.setdefault(s.id, []).append(f.codes))
    for name, steps in (("a", 1), ("b", 3)):
        one.add(SpeechRequest(name, TEXT, sampling={"seed": 1, "steps": steps}))
    one.step()
    assert latents["a"][0] == pytest.approx(default[0])
    without_noise = torch.sin(torch.tensor([15.0, 0.3]))
    offsets = [torch.tensor(latents[name][0]) - without_noise for name in "ab"]
    torch.testing.assert_close(offsets[1], offsets[0] / 4)


def test_a_latent_that_is_not_finite_fails_its_request():
    one = engine()
    emit = one.model.emit
    one.model.emit = lambda hidden, sampler: emit(hidden / 0, sampler)  # type: ignore[method-assign]
    _, events = spoken(one)
    assert isinstance(events[-1], Failed)


def test_a_row_of_the_models_state_is_cleared_when_its_sequence_fails():
    one = engine()
    cleared: list[int] = []
    one.model.clear = cleared.append  # type: ignore[method-assign]
    one.model.advance = lambda *_: 1 / 0  # type: ignore[method-assign]
    spoken(one)
    assert cleared == [0]


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (
            {"temperature": 0.5},
            "no parameter temperature; it has seed, noise_level, steps, language",
        ),
        ({"noise_level": 3.0}, "noise_level must be from 0 to 2"),
        ({"steps": 1.5}, "steps must be an integer"),
        ({"steps": "2"}, "steps must be an integer, not str"),
        ({"language": "fr"}, "language must be one of auto, de, en, not 'fr'"),
        ({"language": 1}, "language must be one of auto, de, en, not '1'"),
        ({"instructions": "x" * 21}, "instructions has 21 characters; the limit is 20"),
        ({"instructions": 7}, "instructions must be text, not int"),
    ],
)
def test_a_bad_parameter_is_named(sampling: dict[str, Any], message: str):
    with pytest.raises(InvalidRequest, match=message) as refused:
        engine().add(SpeechRequest("x", TEXT, sampling=sampling))
    assert refused.value.param in sampling


def test_a_server_default_must_be_a_parameter_of_the_model():
    info = engine(parameter=("steps=2", "language=de")).info("g", "glide", 0.0)
    assert (info.sampling["steps"], info.sampling["language"]) == (2, "de")
    with pytest.raises(ConfigError, match="no parameter temperature"):
        engine(temperature=0.5)


def test_parameters_that_a_model_declares_are_listed():
    info = engine().info("g", "glide", 0.0)
    words = {"language": "auto", "instructions": ""}
    assert info.sampling == {"seed": None, "noise_level": 0.5, "steps": 1} | words
    assert info.parameters["steps"]["maximum"] == 3
    assert info.parameters["language"]["enum"] == ["auto", "de", "en"]
    assert info.parameters["instructions"]["maxLength"] == 20
    assert not info.takes_voices


def sampler(count: int, kind: type[Parameters] = GlideParameters) -> SlotSampler:
    state = SlotSampler(count, torch.device("cpu"), kind)
    for slot in range(count):
        state.assign(slot, kind(), seed=slot)
    return state


def rows(state: SlotSampler, *numbers: int) -> Any:
    return state.rows(numbers, torch.tensor(numbers))


def test_noise_is_normal():
    state = sampler(400)
    noise = rows(state, *range(400)).noise(256).flatten()
    assert abs(float(noise.mean())) < 0.01
    assert abs(float(noise.std()) - 1) < 0.01
    assert abs(float((noise.abs() < 1.96).float().mean()) - 0.95) < 0.005
    assert 4 < float(noise.abs().max()) < 5.3


def test_noise_depends_only_on_seed_frame_and_place():
    state = sampler(3)
    alone, beside = rows(state, 1).noise(8), rows(state, 2, 1, 0).noise(8)
    assert torch.equal(alone[0], beside[1])
    assert not torch.equal(beside[0], beside[1])
    assert not torch.equal(alone, rows(state, 1).noise(8, place=1))
    state.commit(torch.tensor([1]), torch.tensor([0]))
    assert not torch.equal(alone, rows(state, 1).noise(8))


def test_noise_and_draws_of_codes_use_different_random_keys():
    state = sampler(1, SamplingParams)
    flat = torch.zeros(1, 64)
    drawn = [int(rows(state, 0)(flat, book)[0]) for book in range(4)]
    largest = [int(rows(state, 0).noise(64, place).argmax()) for place in range(4)]
    assert drawn != largest


def test_the_host_knows_the_largest_number_or_the_limit():
    state = sampler(2)
    state.assign(1, GlideParameters(steps=2), seed=0)
    assert rows(state, 0).largest("steps") == 1
    assert rows(state, 0, 1).largest("steps") == 2
    assert state.rows(None, torch.tensor([0])).largest("steps") == 3
