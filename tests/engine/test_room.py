"""Workers that do not fit together are refused, with figures, before any of them loads."""

from __future__ import annotations

import attrs
import pytest

from tests.conftest import TONE
from vox_serve.config import EngineConfig
from vox_serve.engine import device, room
from vox_serve.engine.load import load_engine
from vox_serve.errors import ConfigError
from vox_serve.plugins import load_plugins
from vox_serve.workers import devices

DEMO = EngineConfig("demo", max_batch_size=8)
MIB = 2**20


def free(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(device, "free_bytes", lambda place: size)


def test_the_planned_memory_is_what_loading_takes() -> None:
    need = room._need(DEMO)
    engine, info = load_engine(DEMO, load_plugins(()))
    assert need.slot == device.slot_bytes(engine.model)
    assert (
        0.6 * info.weight_bytes < need.weights <= info.weight_bytes
    )  # except for copies to compute with


def test_models_that_fit_alone_and_not_together_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free(monkeypatch, 200 * MIB)
    room.require_room([DEMO])
    room.require_room([DEMO, TONE])
    with pytest.raises(
        ConfigError,
        match=r"the workers on cpu need 0\.2\d+ GB, but it has 0\.21 GB free: 2 x demo with "
        r"0\.0\d+ GB of weights and 8 slots of 0\.01\d+ GB; 1 x tone",
    ):
        room.require_room([DEMO, DEMO, TONE])


def test_a_model_that_cannot_be_planned_does_not_stop_the_check(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TONE_LOAD_ERROR", "1")
    room._need.cache_clear()
    room.require_room([TONE, TONE])
    assert "the memory of tone is not planned: the tone is out of tune" in caplog.text


@pytest.mark.slow  # loads torch in another process
def test_the_server_checks_the_memory_before_any_worker_loads() -> None:
    devices.require_room([attrs.evolve(TONE, replicas=1)])  # starts no process
    huge = attrs.evolve(DEMO, replicas=64, max_batch_size=1024)
    with pytest.raises(ConfigError, match=r"the workers on cpu need .* 64 x demo"):
        devices.require_room([huge])


def test_both_processes_use_the_same_exit_code() -> None:
    assert room.REFUSED == devices.ROOM_REFUSED
