"""How the settings dtype and quantize resolve on each device."""

import pytest

from vox_serve.config import EngineConfig
from vox_serve.engine.load import number_formats
from vox_serve.errors import ConfigError
from vox_serve.nn.linear import holds_halves

HALF = "float16" if holds_halves() else None


@pytest.mark.parametrize(
    ("settings", "device", "expected"),
    [
        ({}, "cpu", ("float32", HALF)),
        ({}, "cuda:0", ("bfloat16", None)),
        ({"dtype": "bfloat16"}, "cpu", ("bfloat16", None)),
        ({"dtype": "float32"}, "cpu", ("float32", None)),
        ({"dtype": "float32"}, "cuda", ("float32", None)),
        ({"quantize": "int8"}, "cpu", ("float32", "int8")),
        ({"quantize": "fp8"}, "cuda", ("bfloat16", "fp8")),
    ],
)
def test_settings_resolve_to_number_formats(
    settings: dict[str, str], device: str, expected: tuple[str, str | None]
) -> None:
    assert number_formats(EngineConfig(**settings), device) == expected


@pytest.mark.parametrize(
    ("settings", "device", "problem"),
    [
        ({"quantize": "int8"}, "cuda", "quantize int8 does not work on the device cuda"),
        ({"quantize": "fp8"}, "cpu", "quantize fp8 does not work on the device cpu"),
        ({"quantize": "int8", "dtype": "bfloat16"}, "cpu", "leave dtype at auto"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    settings: dict[str, str], device: str, problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        number_formats(EngineConfig(**settings), device)
