"""Prefill, emit, advance and the codec step never read the device: a CUDA graph could hold them.

On a CPU a read costs nothing and goes unnoticed, so every operation that would bring a value
to the host, or whose output's shape depends on values, is refused while they run.
"""

from __future__ import annotations

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from plugins.csm.tests.conftest import MakeEngine
from vox_serve.engine.messages import Finished, SpeechRequest

INDEXING = {torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_}
READS = {
    torch.ops.aten._local_scalar_dense.default,  # .item(), int(), bool(), if
    torch.ops.aten.equal.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten._unique2.default,
    torch.ops.aten.repeat_interleave.Tensor,
}


COPIES = {torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu}


class NoRead(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        indices = args[1] if func.overloadpacket in INDEXING else ()
        masks = any(index is not None and index.dtype is torch.bool for index in indices)
        reads = func in READS or masks
        assert not reads, f"{func} reads the device"
        return func(*args, **(kwargs or {}))


class NoCopy(TorchFunctionMode):
    """Catches what a CPU tensor does without any operation."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        assert func not in COPIES, f"{func} reads the device"
        return func(*args, **(kwargs or {}))


def guarded(function):
    def run(*args, **kwargs):
        with NoRead(), NoCopy():
            return function(*args, **kwargs)

    return run


def test_the_guard_notices_a_read():
    for read in (lambda x: x.item(), bool, lambda x: x[x > 0], lambda x: x.tolist()):
        with pytest.raises(AssertionError, match="reads the device"):
            guarded(read)(torch.ones(1))


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_nothing_is_read_while_the_model_runs(make_engine: MakeEngine, temperature: float):
    engine = make_engine()
    for name in ("prefill", "emit", "advance"):
        setattr(engine.model, name, guarded(getattr(engine.model, name)))
    engine.model.codec.step = guarded(engine.model.codec.step)
    sampling = {"temperature": temperature, "top_p": 0.9, "repetition_penalty": 1.3}
    for number, text in enumerate(("hello", "a longer text")):
        engine.add(SpeechRequest(str(number), text, sampling=sampling, max_seconds=0.4))
    ends = []
    while engine.has_work:
        ends += [e for e in engine.step().events if isinstance(e, Finished)]
    assert [end.frames for end in ends] == [5, 5]
