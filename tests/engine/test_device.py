"""How a device is chosen, how torch is set up for it, and what fits; without a GPU."""

from __future__ import annotations

import logging

import pytest
import torch

from tests.conftest import TONE
from tests.tone import ToneCodec, ToneModel
from vox_serve.config import EngineConfig
from vox_serve.engine import device
from vox_serve.engine.load import load_engine
from vox_serve.errors import ConfigError
from vox_serve.plugins import load_plugins


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Make torch report a CUDA device; returns the numbers of the devices made current."""
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    # The function below torch's own checks; a build without CUDA lacks it.
    monkeypatch.setattr(torch._C, "_cuda_setDevice", chosen.append, raising=False)
    monkeypatch.setattr(device.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(device.Path, "is_file", lambda self: True)
    return chosen


@pytest.fixture(autouse=True)
def restore_flags():
    before = torch.backends.cuda.cudnn_sdp_enabled(), torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.enable_cudnn_sdp(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.parametrize(("name", "number"), [("auto", 0), ("cuda", 0), ("cuda:1", 1)])
def test_a_cuda_device_has_a_number_and_is_made_the_current_one(
    cuda: list[int], name: str, number: int
):
    chosen = device.choose(name)
    assert chosen == torch.device("cuda", number)
    device.prepare(chosen)
    assert cuda == [number]


def test_loading_on_cuda_reaches_the_model(cuda: list[int], monkeypatch: pytest.MonkeyPatch):
    """It used to fail before the model was loaded, because torch needs a device number."""

    class Reached(Exception):
        pass

    def load(options):
        raise Reached(options.device)

    monkeypatch.setattr("tests.tone._load", load)
    config = EngineConfig(TONE.model, device="auto", plugins=TONE.plugins)
    with pytest.raises(Reached, match="cuda:0"):
        load_engine(config, load_plugins(config.plugins))


def test_attention_on_cuda_builds_no_plans(cuda: list[int]):
    torch.backends.cuda.enable_cudnn_sdp(True)
    device.prepare(torch.device("cpu"))
    assert torch.backends.cuda.cudnn_sdp_enabled()
    device.prepare(torch.device("cuda:0"))
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert not torch.backends.cudnn.allow_tf32


def test_a_missing_requirement_of_triton_is_named_at_once(
    cuda: list[int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda name: object())
    monkeypatch.delenv("CC", raising=False)
    with monkeypatch.context() as here:
        here.setattr(device.shutil, "which", lambda name: None)
        with pytest.raises(ConfigError, match="Triton needs a C compiler"):
            device.prepare(torch.device("cuda:0"))
    with monkeypatch.context() as here:
        here.setattr(device.Path, "is_file", lambda self: False)
        with pytest.raises(ConfigError, match=r"Triton needs .*Python\.h"):
            device.prepare(torch.device("cuda:0"))
    device.prepare(torch.device("cuda:0"))
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(device.shutil, "which", lambda name: None)
    device.prepare(torch.device("cuda:0"))  # plain torch needs neither
    assert cuda == [0, 0]


@pytest.mark.parametrize("name", ["cuda", "cuda:3"])
def test_a_missing_device_is_refused(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="finds no CUDA device"):
        device.choose(name)
    assert device.choose("auto") == torch.device("cpu")
    with pytest.raises(ConfigError, match="'gpu' is not a torch device"):
        device.choose("gpu")


def test_slots_that_do_not_fit_are_refused_before_allocation(monkeypatch: pytest.MonkeyPatch):
    made: list[int] = []
    allocate = ToneCodec.allocate

    def watched(self: ToneCodec, num_slots: int) -> int:
        made.append(num_slots)
        return allocate(self, num_slots)

    each = device.slot_bytes(ToneModel())
    assert each == 2 * 4 * 4 * 200 + 8
    monkeypatch.setattr(ToneCodec, "allocate", watched)
    monkeypatch.setattr(device, "free_bytes", lambda _: 10 * each)
    device.require_room(ToneModel(), 10)
    config = EngineConfig(TONE.model, max_batch_size=11, plugins=TONE.plugins)
    with pytest.raises(ConfigError) as refused:
        load_engine(config, load_plugins(config.plugins))
    message = str(refused.value)
    assert "max_batch_size 11 needs 7.05e-05 GB, 6.41e-06 GB for each slot" in message
    assert "cpu has 6.41e-05 GB free after 0 GB of weights" in message
    assert "at most 10 fit" in message
    assert max(made) == 2
    monkeypatch.setattr(device, "free_bytes", lambda _: 1)
    with pytest.raises(ConfigError, match="at most 0 fit"):
        device.require_room(ToneModel(), 1)


def test_out_of_memory_while_loading_is_reported_in_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def full(self: ToneCodec, num_slots: int) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has\n1")

    monkeypatch.setattr(ToneCodec, "allocate", full)
    config = EngineConfig(TONE.model, plugins=TONE.plugins)
    with caplog.at_level(logging.ERROR), pytest.raises(ConfigError) as refused:
        load_engine(config, load_plugins(config.plugins))
    assert str(refused.value) == (
        "device cpu: not enough memory for this model with max_batch_size 16 (CUDA out of memory)"
    )
