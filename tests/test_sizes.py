"""The sizes in a configuration are checked before anything is built."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vox_serve.errors import CheckpointError
from vox_serve.hub import read_json
from vox_serve.sizes import check_sizes


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"num_hidden_layers": 10**8},
            "num_hidden_layers must be a whole number from 1 to 512, not 100000000",
        ),
        (
            {"depth_decoder_config": {"hidden_size": -1}},
            "depth_decoder_config.hidden_size must be a whole number from 1 to 65536, not -1",
        ),
        ({"head_dim": 64.0}, "head_dim must be a whole number from 2 to 1024, not 64.0"),
        ({"compress": True}, "compress must be a whole number from 1 to 64, not True"),
        (
            {"upsampling_ratios": [8, 0]},
            "upsampling_ratios must be a whole number from 1 to 64, not [8, 0]",
        ),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be a number from 1e-12 to 1, not nan"),
        ({"codec_config": "x"}, "codec_config must hold fields, not 'x'"),
        (
            {"head_dim": 10**5000},
            "head_dim must be a whole number from 2 to 1024, not a number of more than 18 digits",
        ),
    ],
    ids=str.split("huge negative float bool list nan table digits"),
)
def test_a_size_out_of_range_is_named_with_its_limit(config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as refused:
        check_sizes("c.json", config)
    assert str(refused.value) == f"c.json: {message}"


def test_defaults_and_unknown_fields_are_left_alone() -> None:
    check_sizes("c.json", {"hidden_size": None, "sliding_window": None, "other": 10**99, "x": {}})


def test_every_configuration_is_checked_when_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"codec_config": {"num_filters": 10**9}}))
    with pytest.raises(CheckpointError, match=r"config.json: codec_config.num_filters must be"):
        read_json(file)
    file.write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        read_json(file)
