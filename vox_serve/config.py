"""All settings and their defaults.

A field's metadata contains its help text; `vox_serve.flags` turns fields into command-line flags.
"""

from __future__ import annotations

import re
from typing import Any

import attrs

from vox_serve import logs
from vox_serve.errors import ConfigError
from vox_serve.sampling import RANGES

DEFAULT_MODEL = "demo"
DTYPES = ("auto", "bfloat16", "float32")
QUANTIZE = ("none", "int8", "fp8")
WORKER_DEATH = ("exit", "restart")
DAY = 86400
ADAPTER = re.compile(r"([A-Za-z0-9_.:-]{1,64})=(.+)", re.DOTALL)
MAX_ADAPTERS = 64
KEY = re.compile(r"[!-~]{1,512}")
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:]+\])(:\d{1,5})?")
HOST = re.compile(r"(\*\.)?[A-Za-z0-9_.-]+|\[?[0-9A-Fa-f:]+\]?")
LIMITS = (
    "max_connections",
    "max_connections_per_address",
    "max_open_per_key",
    "max_per_minute_per_key",
)
"""Limits on connections and keys; 0 has a special meaning."""


def setting(default: Any, help: str, choices: tuple[str, ...] | None = None) -> Any:
    """A field that becomes a command-line flag."""
    return attrs.field(default=default, metadata={"help": help, "choices": choices})


def _secret(default: Any, help: str) -> Any:
    """Like `setting`, for values that must not be printed."""
    return attrs.field(default=default, metadata={"help": help, "choices": None}, repr=False)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@attrs.frozen
class EngineConfig:
    """Settings of the engine worker.  Raises ConfigError for a bad value."""

    model: str = setting(DEFAULT_MODEL, "alias, hub id or directory of the model")
    device: str = setting(
        "auto",
        "torch devices, e.g. cpu or cuda:0,cuda:1; auto: the first GPU, auto-all: every GPU, else "
        "the CPU",
    )
    replicas: int = setting(1, "workers on each device, behind one queue")
    dtype: str = setting(
        "auto",
        "number format; auto: bfloat16 on a GPU, float16 and bfloat16 weights on a CPU",
        DTYPES,
    )
    quantize: str = setting(
        "none",
        "8-bit weights, which change the sound: int8 on a CPU, fp8 on a GPU that supports it",
        QUANTIZE,
    )
    adapter: tuple[str, ...] = setting(
        (),
        "a LoRA adapter as PEFT saves it: DIRECTORY is merged into the weights at load, "
        "NAME=DIRECTORY is served beside the base as a model of that name; the latter repeatable",
    )
    max_batch_size: int = setting(16, "slots: the most requests spoken at the same time")
    max_seconds: float = setting(90.0, "the longest audio of one request, in seconds")
    temperature: float | None = setting(None, RANGES["temperature"].text)
    top_k: int | None = setting(None, RANGES["top_k"].text)
    top_p: float | None = setting(None, RANGES["top_p"].text)
    min_p: float | None = setting(None, RANGES["min_p"].text)
    repetition_penalty: float | None = setting(None, RANGES["repetition_penalty"].text)
    seed: int | None = setting(None, RANGES["seed"].text)
    parameter: tuple[str, ...] = setting(
        (), "NAME=VALUE: the default of a parameter that only this model has; repeatable"
    )
    prefix_cache_mib: int = setting(
        512, "memory for the cached prompts of voices and conversations; 0 caches none"
    )
    conversation_timeout: float = setting(
        1800.0, "seconds after which an idle conversation is forgotten"
    )
    max_conversations: int = setting(1000, "the most conversations that are remembered")
    deterministic: bool = setting(
        False,
        "same request and seed, same bytes, whatever else runs; slower: every batch is full size",
    )
    threads: int = setting(0, "CPU threads of the engine; 0: 1 for a small model, else all cores")
    plugins: tuple[str, ...] = setting((), "more modules to load as plugins")

    def __attrs_post_init__(self) -> None:
        _require(self.dtype in DTYPES, f"dtype must be one of {', '.join(DTYPES)}")
        _require(self.quantize in QUANTIZE, f"quantize must be one of {', '.join(QUANTIZE)}")
        _require(
            all(name.strip() for name in self.device.split(",")),
            "device must be one name, or several with commas between them",
        )
        _require(1 <= self.replicas <= 64, "replicas must be from 1 to 64")
        _require(1 <= self.max_batch_size <= 1024, "max_batch_size must be from 1 to 1024")
        _require(0 < self.max_seconds <= 3600, "max_seconds must be more than 0, at most 3600")
        _require(0 <= self.prefix_cache_mib <= 2**20, "prefix_cache_mib must be 0 to 1048576")
        _require(
            0 < self.conversation_timeout <= DAY,
            f"conversation_timeout must be more than 0, at most {DAY} s",
        )
        _require(
            1 <= self.max_conversations <= 10**6, "max_conversations must be from 1 to 1000000"
        )
        _require(0 <= self.threads <= 1024, "threads must be from 0 to 1024")
        named = len(self.adapters)
        _require(
            all(self.adapter) and named <= MAX_ADAPTERS and len(self.adapter) in (0, 1, named),
            f"adapter must be one DIRECTORY, or up to {MAX_ADAPTERS} times NAME=DIRECTORY with "
            "different names",
        )
        for name, value in self.sampling.items():
            if name in RANGES:
                RANGES[name].check(name, value)

    @property
    def merged_adapter(self) -> str | None:
        """The directory of the adapter that is merged."""
        return self.adapter[0] if self.adapter and not self.adapters else None

    @property
    def adapters(self) -> dict[str, str]:
        """The directories of the adapters served with the base, by name, in order."""
        found = map(ADAPTER.fullmatch, self.adapter)
        return {match[1]: match[2] for match in found if match is not None}

    def workers(self) -> list[EngineConfig]:
        """A configuration for each worker, with a single device; `auto-all` must be resolved."""
        devices = [name.strip() for name in self.device.split(",")]
        return [attrs.evolve(self, device=name) for name in devices for _ in range(self.replicas)]

    @property
    def sampling(self) -> dict[str, Any]:
        """The sampling parameters that are set; the model's defaults apply to the others."""
        given = {name: getattr(self, name) for name in RANGES if getattr(self, name) is not None}
        return given | dict(map(_named, self.parameter))


def _named(text: str) -> tuple[str, int | float | str]:
    name, sign, value = text.partition("=")
    if not sign:
        raise ConfigError(f"parameter must be NAME=VALUE, not {text!r}")
    try:
        return name, int(value) if value.isdigit() else float(value)
    except ValueError:
        return name, value


@attrs.frozen
class ServerConfig:
    """Settings of the HTTP server.  Raises ConfigError for a bad value."""

    host: str = setting(
        "127.0.0.1", "address to listen on; 0.0.0.0 for every interface, :: for IPv6 too"
    )
    port: int = setting(8000, "port to listen on; 0 picks a free one")
    max_queue: int = setting(64, "requests that may wait for a slot; more get 429")
    request_timeout: float = setting(600.0, "seconds after which an unfinished request is cut")
    read_timeout: float = setting(
        60.0, "seconds that a client may take to send a request's headers, and again for its body"
    )
    keep_alive_timeout: float = setting(
        130.0, "seconds that a silent connection is kept open; more than a proxy before it keeps it"
    )
    text_timeout: float = setting(
        10.0, "seconds after which a text that is spoken while it is written ends if no more comes"
    )
    send_timeout: float = setting(30.0, "seconds that a client may leave its audio unread")
    shutdown_timeout: float = setting(30.0, "seconds that running requests get after SIGTERM")
    stall_timeout: float = setting(
        120.0, "seconds that a step or a call of the model may take before it counts as hung"
    )
    on_worker_death: str = setting(
        "exit", "a worker that dies or hangs ends the server, or is restarted", WORKER_DEATH
    )
    unload_after: float | None = setting(
        None, "idle seconds after which a model leaves memory until it is asked for again"
    )
    max_body_bytes: int = setting(32 * 2**20, "the largest request body")
    max_body_bytes_total: int = setting(
        128 * 2**20, "memory for the bodies of all open requests; more get 429"
    )
    max_connections: int = setting(
        0, "connections open at once; 0: as many as the descriptor limit allows, at most 4096"
    )
    max_connections_per_address: int = setting(
        0,
        "connections of one client address, or of a proxy; 0: half of all",
    )
    api_key: tuple[str, ...] = _secret(
        (), "a key that requests must bring; other users of the machine can see it; repeatable"
    )
    api_keys_file: str | None = setting(
        None, "file of hashed keys, from `vox-serve new-key`; read again on SIGHUP"
    )
    max_open_per_key: int = setting(0, "requests that one key may have open at once; 0: no limit")
    max_per_minute_per_key: int = setting(0, "requests of one key in a minute; 0: no limit")
    metrics_need_key: bool = setting(False, "answer GET /metrics only to those who have a key")
    cors_origin: tuple[str, ...] = setting(
        (),
        "origin whose pages may use the server, for example https://example.com; * for any; "
        "repeatable",
    )
    ws_origin: tuple[str, ...] = setting(
        (), "origin whose pages may use the WebSocket only; * for any; repeatable"
    )
    allowed_hosts: tuple[str, ...] = setting(
        (),
        "name in the Host header that is answered, *.example.com for all below; * for any; "
        "repeatable; if not given: only local names on a loopback address, else any",
    )
    lexicon: str | None = setting(
        None, "a JSON file of words and respellings that correct their pronunciation"
    )
    strict_fields: bool = setting(
        False,
        "also refuse the fields of other speech servers, which are otherwise ignored and reported",
    )
    postprocess: str | None = setting(
        None, "what a plugin does to all sound before it is encoded, by name, e.g. a watermark"
    )
    voices_dir: str | None = setting(
        None, "directory that stores registered voices; without it, they are lost on exit"
    )
    voice_alias: tuple[str, ...] = setting(
        (), "NAME=VOICE: another name for a voice under /v1, for example alloy=hum_b; repeatable"
    )
    log_level: str = setting("info", "how much to log", logs.LEVELS)
    log_format: str = setting("text", "lines of text, or a JSON object per line", logs.FORMATS)
    log_text: bool = setting(False, "log the texts of requests, which may be private")
    traces: bool = setting(
        False, "send OpenTelemetry traces; OTEL_... variables say where; extra `otel`"
    )

    @property
    def log(self) -> logs.LogSettings:
        """How the server and its workers log."""
        return logs.LogSettings(self.log_level, self.log_format, self.log_text)

    def __attrs_post_init__(self) -> None:
        _require(0 <= self.port <= 65535, "port must be from 0 to 65535")
        _require(self.max_queue >= 0, "max_queue must be 0 or more")
        _require(
            self.on_worker_death in WORKER_DEATH,
            f"on_worker_death must be one of {', '.join(WORKER_DEATH)}",
        )
        _require(
            self.unload_after is None or 0 < self.unload_after <= DAY,
            f"unload_after must be more than 0, at most {DAY} s",
        )
        _require(self.max_body_bytes >= 1024, "max_body_bytes must be 1024 or more")
        _require(
            self.max_body_bytes_total >= self.max_body_bytes,
            "max_body_bytes_total must not be less than max_body_bytes",
        )
        for name in LIMITS:
            _require(0 <= getattr(self, name) <= 10**6, f"{name} must be from 0 to 1000000")
        _require(self.api_keys_file != "", "api_keys_file must not be empty")
        for key in self.api_key:
            _require(KEY.fullmatch(key) is not None, "api_key must be 1 to 512 visible characters")
        for name in ("cors_origin", "ws_origin"):
            for origin in getattr(self, name):
                _require(
                    origin == "*" or ORIGIN.fullmatch(origin) is not None,
                    f"{name} must be scheme://host[:port] or *, not {origin!r}",
                )
        for host in self.allowed_hosts:
            _require(
                host == "*" or HOST.fullmatch(host) is not None,
                f"allowed_hosts must be names without scheme and port, not {host!r}",
            )
        _require(self.voices_dir != "", "voices_dir must not be empty")
        _require(self.postprocess != "", "postprocess must not be empty")
        for name, choices in (("log_level", logs.LEVELS), ("log_format", logs.FORMATS)):
            _require(getattr(self, name) in choices, f"{name} must be one of {', '.join(choices)}")
        for name in ("request", "read", "keep_alive", "text", "send", "shutdown", "stall"):
            field = f"{name}_timeout"
            _require(
                0 < getattr(self, field) <= DAY, f"{field} must be more than 0, at most {DAY} s"
            )
        for alias in self.voice_alias:
            name, _, voice = alias.partition("=")
            _require(bool(name and voice), f"voice_alias must be NAME=VOICE, not {alias!r}")

    @property
    def voice_aliases(self) -> dict[str, str]:
        """Voices by alias; the last entry for an alias wins."""
        return dict(alias.split("=", 1) for alias in self.voice_alias)
