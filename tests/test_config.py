"""The configuration classes refuse values out of range, and name the field."""

from __future__ import annotations

import math
from typing import Any

import attrs
import pytest

from vox_serve.config import EngineConfig, ServerConfig
from vox_serve.errors import VoxServeError

BAD: list[tuple[type[Any], str, Any]] = [
    (EngineConfig, "dtype", "float16"),
    (EngineConfig, "quantize", "int4"),
    (EngineConfig, "max_batch_size", 0),
    (EngineConfig, "max_batch_size", 1025),
    (EngineConfig, "max_seconds", 0.0),
    (EngineConfig, "threads", -1),
    (ServerConfig, "shutdown_timeout", math.inf),
    (ServerConfig, "send_timeout", math.inf),
    (EngineConfig, "seed", 10**400),
    (EngineConfig, "max_seconds", 3601.0),
    (EngineConfig, "max_seconds", math.nan),
    (EngineConfig, "temperature", -0.1),
    (EngineConfig, "parameter", ("noise",)),
    (EngineConfig, "temperature", math.nan),
    (EngineConfig, "top_k", -1),
    (EngineConfig, "top_p", 0.0),
    (EngineConfig, "min_p", 1.1),
    (EngineConfig, "repetition_penalty", 0.0),
    (EngineConfig, "seed", -1),
    (EngineConfig, "threads", -1),
    (EngineConfig, "threads", 1025),
    (EngineConfig, "prefix_cache_mib", -1),
    (EngineConfig, "conversation_timeout", 0.0),
    (EngineConfig, "max_conversations", 0),
    (EngineConfig, "replicas", 0),
    (EngineConfig, "adapter", ("",)),
    (EngineConfig, "adapter", ("a/one", "a/two")),
    (EngineConfig, "adapter", ("anna=a", "anna=b")),
    (EngineConfig, "adapter", ("anna=a", "b")),
    (EngineConfig, "adapter", tuple(f"a{n}=b" for n in range(65))),
    (ServerConfig, "port", -1),
    (ServerConfig, "port", 65536),
    (ServerConfig, "max_queue", -1),
    (ServerConfig, "request_timeout", 0.0),
    (ServerConfig, "request_timeout", math.nan),
    (ServerConfig, "read_timeout", 0.0),
    (ServerConfig, "send_timeout", 0.0),
    (ServerConfig, "text_timeout", 0.0),
    (ServerConfig, "shutdown_timeout", -1.0),
    (ServerConfig, "stall_timeout", 0.0),
    (ServerConfig, "on_worker_death", "pray"),
    (ServerConfig, "unload_after", 0.0),
    (ServerConfig, "keep_alive_timeout", 0.0),
    (ServerConfig, "max_body_bytes", 1023),
    (ServerConfig, "max_body_bytes_total", 1024),
    (ServerConfig, "max_connections", -1),
    (ServerConfig, "max_connections_per_address", -1),
    (ServerConfig, "max_open_per_key", -1),
    (ServerConfig, "max_per_minute_per_key", 1_000_001),
    (ServerConfig, "api_key", ("",)),
    (ServerConfig, "api_key", ("two words",)),
    (ServerConfig, "api_keys_file", ""),
    (ServerConfig, "cors_origin", ("example.com",)),
    (ServerConfig, "cors_origin", ("https://example.com/",)),
    (ServerConfig, "ws_origin", ("https://*.example.com",)),
    (ServerConfig, "allowed_hosts", ("https://example.com",)),
    (ServerConfig, "allowed_hosts", ("example.com:8000",)),
    (ServerConfig, "voices_dir", ""),
    (ServerConfig, "postprocess", ""),
    (ServerConfig, "voice_alias", ("alloy",)),
    (ServerConfig, "log_level", "loud"),
    (ServerConfig, "log_format", "xml"),
]


@pytest.mark.parametrize(("config", "name", "bad"), BAD)
def test_a_bad_value_is_refused_by_name(config: type[Any], name: str, bad: Any) -> None:
    with pytest.raises(VoxServeError, match=name) as caught:
        config(**{name: bad})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("config", [EngineConfig, ServerConfig])
def test_every_field_is_checked_or_is_free_text(config: type[Any]) -> None:
    """A new setting needs a check or an entry in this list."""
    free = {
        "model",
        "device",
        "plugins",
        "host",
        "deterministic",
        "log_text",
        "traces",
        "lexicon",
    }
    free |= {"metrics_need_key", "strict_fields"}
    checked = {name for owner, name, _ in BAD if owner is config}
    assert {field.name for field in attrs.fields(config)} == checked | (
        free & {field.name for field in attrs.fields(config)}
    )


def test_sampling_contains_only_given_values() -> None:
    assert EngineConfig().sampling == {}
    assert EngineConfig(temperature=0.0, seed=0).sampling == {"temperature": 0.0, "seed": 0}


def test_adapters_with_a_name_are_served_beside_the_base() -> None:
    named = EngineConfig(adapter=("anna=lora/a", "bert=/b/r=16"))
    assert named.adapters == {"anna": "lora/a", "bert": "/b/r=16"}
    assert named.merged_adapter is None
    for directory in ("lora/a", "./r=16/a", "/loras/r=16"):
        assert EngineConfig(adapter=(directory,)).merged_adapter == directory


def test_configurations_are_frozen() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        EngineConfig().model = "other"
