"""The configuration file of a cluster.  These tests do not need Ray."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from vox_serve import cli
from vox_serve.cluster.application import serve_config
from vox_serve.cluster.config import content_of, parse, read_config
from vox_serve.errors import ConfigError

CONTENT = {
    "models": [{"model": "tone", "max_batch_size": 4, "plugins": ["tests.tone"], "cpus": 2}],
    "server": {"port": 9000, "voices_dir": "/voices"},
    "ingress": {"max_replicas": 2, "resources": {"edge": 0.5}},
}


def test_a_model_has_engine_settings_and_scaling_settings():
    config = parse(CONTENT)
    assert config.models[0].engine.plugins == ("tests.tone",)
    assert config.models[0].scale.cpus == 2
    assert config.server.voices_dir == "/voices"
    assert config.ingress.max_replicas == 2


def test_the_configuration_survives_as_json_for_ray_serve():
    config = parse(CONTENT)
    assert parse(json.loads(json.dumps(content_of(config)))) == config
    written = serve_config(config)
    assert written["http_options"] == {"host": "127.0.0.1", "port": 9000}
    assert parse(written["applications"][0]["args"]) == config


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ([], "the configuration must be a mapping"),
        ({}, "models must be a list"),
        ({"models": []}, "models must list at least one model"),
        ({"models": ["demo"]}, r"models\[0\] must be a mapping"),
        ({"models": [{"modell": "demo"}]}, r"models\[0\]: unknown field 'modell'"),
        (
            {"models": [{"max_batch_size": 0}]},
            r"models\[0\]: max_batch_size must be from 1 to 1024",
        ),
        ({"models": [{"max_batch_size": "4"}]}, "Expected `int`, got `str`"),
        ({"models": [{"min_replicas": 0}]}, "1 <= min_replicas <= max_replicas"),
        (
            {"models": [{"min_replicas": 3}]},
            r"models\[0\]: replicas must be: 1 <= min_replicas <= max_replicas",
        ),
        ({"models": [{"upscale_delay": -1.0}]}, r"models\[0\]: upscale_delay must be from 0 to"),
        ({"models": [{"downscale_delay": 1e6}]}, "downscale_delay must be from 0 to 86400"),
        ({"models": [{}], "ingress": {"gpus": 1}}, "ingress: gpus must be 0"),
        ({"models": [{}], "server": {"port": 0}}, "server: port must be"),
        ({"models": [{}], "server": {"unload_after": 5.0}}, "unload_after cannot be set"),
        ({"models": [{}], "server": {"api_key": ["k"]}}, "api_key cannot be set"),
        ({"models": [{}], "extra": 1}, "unknown field 'extra'"),
        ({"models": [{"replicas": 2}]}, r"models\[0\]: replicas and several devices"),
        ({"models": [{"device": "auto-all"}]}, r"models\[0\]: replicas and several devices"),
    ],
)
def test_a_bad_configuration_names_the_field(content, problem):
    with pytest.raises(ConfigError, match=problem):
        parse(content)


def test_an_unreadable_file_is_reported_in_one_line(tmp_path: Path):
    broken = tmp_path / "cluster.yaml"
    broken.write_text("models: [")
    for path in (broken, tmp_path / "missing.yaml"):
        with pytest.raises(ConfigError, match=r"cannot be read") as caught:
            read_config(path)
        assert "\n" not in str(caught.value)


def test_the_command_prints_what_ray_serve_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "cluster.yaml"
    file.write_text(json.dumps(CONTENT))
    assert cli.main(["cluster", "up", str(file), "--print"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == serve_config(parse(CONTENT))
