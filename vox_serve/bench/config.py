"""All settings of `vox-serve bench` with their defaults, and the route that a URL names."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import attrs

from vox_serve.config import DAY, setting
from vox_serve.errors import ConfigError

ROUTES = {"generate": "/generate", "openai": "/v1/audio/speech"}
FORMATS = ("wav", "pcm")
PCM_RATE = 24_000
"""Sample rate of pcm in OpenAI's API, in Hz."""
OWN_FIELDS = {"text", "input", "model", "voice", "speaker", "streaming", "format"} | {
    "response_format"
}


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@attrs.frozen
class BenchConfig:
    """What is sent, how often, and where the figures go.  Raises ConfigError for a bad value."""

    rate: tuple[float, ...] = setting(
        (), "open loop: requests per second, at random times (Poisson); one run for each"
    )
    concurrency: tuple[int, ...] = setting(
        (), "closed loop: this many clients, each of which asks again after its response"
    )
    duration: float | None = setting(
        None, "seconds in which requests begin, for each run (default: 30)"
    )
    requests: int | None = setting(None, "number of requests for each run, instead of --duration")
    warmup: int = setting(1, "requests before the first run, one by one, which are not counted")
    seed: int = setting(0, "seed of the arrival times")
    timeout: float = setting(60.0, "seconds after which an unfinished request has failed")
    api: str | None = setting(
        None, "the route to measure (default: the one in the URL, else generate)", tuple(ROUTES)
    )
    model: str | None = setting(None, "the field `model` (default: none; openai: tts-1)")
    voice: str | None = setting(None, "the field `voice` (default: none; openai: alloy)")
    speaker: int | None = setting(None, "the field `speaker`, only for generate (default: 0)")
    format: str = setting("wav", "format of the audio", FORMATS)
    sample_rate: int | None = setting(
        None, f"sample rate of pcm, in Hz (default: {PCM_RATE}); wav states its own"
    )
    body: str | None = setting(None, "a JSON object of additional fields for each request")
    texts: Path | None = setting(None, "file with one text per line (default: built-in texts)")
    json: Path | None = setting(None, "file for settings, figures and every request, as JSON")
    picture: Path | None = setting(
        None, "file for a chart of the figures (needs the extra `bench`)"
    )

    def __attrs_post_init__(self) -> None:
        _require(bool(self.rate) != bool(self.concurrency), "give one of --rate and --concurrency")
        _require(
            self.duration is None or self.requests is None,
            "give --duration or --requests, not both",
        )
        _require(all(0 < rate <= 1000 for rate in self.rate), "rate must be above 0, at most 1000")
        _require(
            all(1 <= count <= 1000 for count in self.concurrency),
            "concurrency must be from 1 to 1000",
        )
        _require(0 < self.seconds <= DAY, f"duration must be above 0, at most {DAY} s")
        _require(
            self.requests is None or 1 <= self.requests <= 100_000,
            "requests must be from 1 to 100000",
        )
        _require(0 <= self.warmup <= 1000, "warmup must be from 0 to 1000")
        _require(0 < self.timeout <= DAY, f"timeout must be above 0, at most {DAY} s")
        _require(self.voice is None or self.speaker is None, "give --voice or --speaker, not both")
        _require(
            self.sample_rate is None or self.format == "pcm", "sample_rate is for --format pcm"
        )
        _require(
            self.sample_rate is None or 1000 <= self.sample_rate <= 384_000,
            "sample_rate must be from 1000 to 384000 Hz",
        )
        clash = sorted(OWN_FIELDS & set(self.extra))
        _require(not clash, f"body must not contain {', '.join(clash)}: other flags set them")

    @property
    def seconds(self) -> float:
        """How long each run starts new requests."""
        return 30.0 if self.duration is None else self.duration

    @property
    def extra(self) -> dict[str, Any]:
        """The fields of --body.  Raises ConfigError."""
        try:
            fields = json.loads(self.body or "{}")
        except ValueError as error:
            raise ConfigError(f"body must be a JSON object: {error}") from None
        _require(isinstance(fields, dict), "body must be a JSON object")
        return dict(fields)


@attrs.frozen
class Target:
    """A route of a server."""

    url: str
    api: str

    @property
    def base(self) -> str:
        """The URL without the route."""
        return self.url.removesuffix(ROUTES[self.api])


def find_target(url: str, api: str | None) -> Target:
    """The route that a URL names; the server's root gets the route of `api`, else /generate.

    Raises:
        ConfigError: not an http URL, or it names the route of the other API.
    """
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  # raises for a bad port
    except ValueError as error:
        raise ConfigError(f"{url!r} is not a URL: {error}") from None
    _require(
        parts.scheme in ("http", "https") and bool(parts.hostname), f"{url!r} is not an http(s) URL"
    )
    _require("@" not in parts.netloc, "the URL must not contain a user or password")
    _require(not parts.query and not parts.fragment, "the URL must not contain ? or #")
    url = url.rstrip("/")
    if url.endswith("/v1"):  # as OpenAI's clients name a server
        url += "/audio/speech"
    named = next((name for name, route in ROUTES.items() if url.endswith(route)), None)
    if named is None:
        chosen = api or "generate"
        return Target(url + ROUTES[chosen], chosen)
    _require(api in (None, named), f"the URL names the route of {named}, --api says {api}")
    return Target(url, named)


def read_texts(path: Path | None) -> list[str]:
    """The texts in a file, one per line, or those that come with vox_serve.

    Raises:
        ConfigError: the file cannot be read, or has no text.
    """
    source = files("vox_serve.bench") / "texts.txt" if path is None else path
    try:
        lines = source.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"texts: {source} cannot be read: {error}") from None
    texts = [line.strip() for line in lines if line.strip()]
    _require(bool(texts), f"texts: {source} has no text")
    return texts
