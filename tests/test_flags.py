"""Each setting is a flag with two spellings, and its default is in the help."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from vox_serve import launch
from vox_serve.config import EngineConfig, ServerConfig
from vox_serve.errors import ConfigError
from vox_serve.flags import read_flags
from vox_serve.launch import read_engines

SETTINGS = [
    (config, field) for config in (EngineConfig, ServerConfig) for field in config.__attrs_attrs__
]
VALUES: dict[str, tuple[str, Any]] = {
    "lexicon": ("words.txt", "words.txt"),
    "model": ("tone", "tone"),
    "device": ("cpu", "cpu"),
    "dtype": ("float32", "float32"),
    "quantize": ("int8", "int8"),
    "max_batch_size": ("3", 3),
    "max_seconds": ("7.5", 7.5),
    "temperature": ("0", 0.0),
    "top_k": ("20", 20),
    "top_p": ("0.5", 0.5),
    "min_p": ("0.1", 0.1),
    "repetition_penalty": ("1.5", 1.5),
    "seed": ("5", 5),
    "threads": ("2", 2),
    "replicas": ("2", 2),
    "prefix_cache_mib": ("0", 0),
    "conversation_timeout": ("1.5", 1.5),
    "max_conversations": ("5", 5),
    "plugins": ("a.b", ("a.b",)),
    "host": ("0.0.0.0", "0.0.0.0"),
    "port": ("0", 0),
    "max_queue": ("0", 0),
    "request_timeout": ("1.5", 1.5),
    "read_timeout": ("1.5", 1.5),
    "send_timeout": ("1.5", 1.5),
    "text_timeout": ("1.5", 1.5),
    "shutdown_timeout": ("1.5", 1.5),
    "stall_timeout": ("1.5", 1.5),
    "on_worker_death": ("restart", "restart"),
    "adapter": ("anna=lora", ("anna=lora",)),
    "unload_after": ("1.5", 1.5),
    "keep_alive_timeout": ("1.5", 1.5),
    "max_body_bytes": ("4096", 4096),
    "max_body_bytes_total": ("99999999", 99999999),
    "max_connections": ("5", 5),
    "max_connections_per_address": ("5", 5),
    "api_key": ("secret", ("secret",)),
    "api_keys_file": ("keys", "keys"),
    "max_open_per_key": ("5", 5),
    "max_per_minute_per_key": ("5", 5),
    "cors_origin": ("https://a.example", ("https://a.example",)),
    "ws_origin": ("https://a.example", ("https://a.example",)),
    "allowed_hosts": ("*.example.com", ("*.example.com",)),
    "voices_dir": ("voices", "voices"),
    "postprocess": ("mark", "mark"),
    "parameter": ("noise=0.5", ("noise=0.5",)),
    "voice_alias": ("alloy=anna", ("alloy=anna",)),
    "log_level": ("debug", "debug"),
    "log_format": ("json", "json"),
}


@pytest.mark.parametrize(("config", "field"), SETTINGS, ids=lambda case: getattr(case, "name", ""))
def test_a_flag_has_two_spellings(config: type[Any], field: attrs.Attribute[Any]) -> None:
    text, expected = VALUES.get(field.name, ("", True))
    for name in (field.name, field.name.replace("_", "-")):
        spellings = ([f"--{name}", text], [f"--{name}={text}"]) if text else ([f"--{name}"],)
        for arguments in spellings:
            parsed = launch.parser("x").parse_args(arguments)
            (read,) = (
                read_engines(parsed) if config is EngineConfig else [read_flags(parsed, config)]
            )
            assert read == attrs.evolve(config(), **{field.name: expected})


def test_defaults_are_those_of_the_classes() -> None:
    nothing = launch.parser("x").parse_args([])
    assert read_flags(nothing, EngineConfig) == EngineConfig()
    assert read_flags(nothing, ServerConfig) == ServerConfig()


def test_several_models_share_the_other_flags() -> None:
    arguments = launch.parser("x").parse_args(["--model", "a", "--model", "b", "--top_k", "5"])
    assert read_engines(arguments) == [EngineConfig("a", top_k=5), EngineConfig("b", top_k=5)]


def test_an_adapter_needs_a_single_model() -> None:
    arguments = launch.parser("x").parse_args(["--model", "a", "--model", "b", "--adapter", "c"])
    with pytest.raises(ConfigError, match="adapter: it belongs to one model"):
        read_engines(arguments)


def test_plugins_may_be_given_several_times() -> None:
    arguments = launch.parser("x").parse_args(["--plugins", "a", "--plugins", "b"])
    assert read_flags(arguments, EngineConfig).plugins == ("a", "b")


def test_help_shows_every_flag_and_default() -> None:
    shown = " ".join(launch.parser("x").format_help().split())
    for _, field in SETTINGS:
        flag = f"--{field.name.replace('_', '-')}"
        assert flag in shown
        assert field.metadata["help"] in shown
        if field.default not in (None, ()):
            assert f"{field.metadata['help']} (default: {field.default})" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--temp", "1"], "--temp"),  # no abbreviations, because they break when a flag is added
        (["--top", "1"], "--top"),
        (["--port", "http"], "--port"),
        (["--port"], "--port"),
        (["--max-batch-size", "1.5"], "--max-batch-size"),
        (["--dtype", "int8"], "--dtype"),
        (["--log-level", "loud"], "--log-level"),
        (["extra"], "extra"),
    ],
)
def test_bad_flags_get_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        launch.parser("x").parse_args(arguments)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("x: ")
    assert message in err
