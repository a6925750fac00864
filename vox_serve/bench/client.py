"""One request over HTTP, and when its sound arrived."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import time
from collections.abc import Callable
from typing import Any

import httpx

from vox_serve import __version__
from vox_serve.bench.config import PCM_RATE, BenchConfig, Target
from vox_serve.bench.recording import Chunk, Recording
from vox_serve.bench.sound import MEDIA_TYPES, NotAudio, Pcm, Wav
from vox_serve.errors import ConfigError

DETAIL_CHARACTERS = 300
"""How much of an error's text is kept."""
FACTS_TIMEOUT = 5.0
"""Seconds allowed for a server to describe itself."""


class SpeechClient:
    """Asks one route for speech.  Each request opens a new connection, like a new user.

    Args:
        transport: replaces sockets in tests.
        clock: monotonic, in seconds.

    Raises:
        ConfigError: the URL or OPENAI_API_KEY cannot be sent.
    """

    def __init__(
        self,
        target: Target,
        config: BenchConfig,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        try:
            httpx.URL(target.url)
        except httpx.InvalidURL as error:
            raise ConfigError(f"{target.url!r} is not a URL: {error}") from None
        self.clock = clock
        self._target = target
        self._config = config
        self._fields = fields(target.api, config)
        self._http = httpx.AsyncClient(
            transport=transport,
            verify=ssl.create_default_context() if target.url.startswith("https") else False,
            timeout=None,  # the whole request has one
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
            trust_env=False,  # no proxy between us and what is measured
            headers=headers(target.api),
        )

    async def __aenter__(self) -> SpeechClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def speak(self, recording: Recording) -> None:
        """Send the request now and record the response; a failure is recorded, not raised."""
        recording.started = self.clock()
        try:
            async with asyncio.timeout(self._config.timeout):
                await self._exchange(recording)
        except TimeoutError:
            recording.failure = "timeout"
        except NotAudio as error:
            recording.failure = str(error)
        except httpx.ConnectError as error:
            recording.failure, recording.detail = "no connection", _cause(error)
        except httpx.TransportError as error:
            recording.failure, recording.detail = "cut connection", str(error)
        recording.ended = self.clock()

    async def _exchange(self, recording: Recording) -> None:
        text = "text" if self._target.api == "generate" else "input"
        body = {text: recording.text, **self._fields}
        async with self._http.stream("POST", self._target.url, json=body) as response:
            recording.status = response.status_code
            if response.status_code != 200:
                recording.failure = f"status {response.status_code}"
                recording.detail = await _detail(response)
                return
            sound = self._sound(response)
            async for data in response.aiter_raw():
                now = self.clock()
                if seconds := sound.seconds(data):
                    recording.chunks.append(Chunk(now, seconds))
        if not recording.chunks:
            raise NotAudio("no sound")

    def _sound(self, response: httpx.Response) -> Wav | Pcm:
        media_type = response.headers.get("content-type", "none").partition(";")[0].strip().lower()
        if media_type not in MEDIA_TYPES[self._config.format]:
            raise NotAudio(f"content type {media_type}")
        if self._config.format == "wav":
            return Wav()
        rate = self._config.sample_rate or PCM_RATE
        stated = response.headers.get("x-sample-rate", str(rate))
        if stated != str(rate):
            raise NotAudio(f"sample rate {stated}, not {rate}")
        return Pcm(rate)

    async def facts(self) -> dict[str, Any] | None:
        """What /health and /models of a vox_serve say; None if it is another server."""
        found = {}
        for route in ("health", "models"):
            url = f"{self._target.base}/{route}"
            try:
                response = await self._http.get(url, timeout=FACTS_TIMEOUT)
                found[route] = response.json()
            except (httpx.HTTPError, ValueError):
                return None
        ours = all(isinstance(facts, dict) and "models" in facts for facts in found.values())
        return found if ours else None


def fields(api: str, config: BenchConfig) -> dict[str, Any]:
    """The body of every request, without its text.  Raises ConfigError."""
    if api == "openai":
        if config.speaker is not None:
            raise ConfigError("speaker is only for --api generate; give a --voice")
        named: dict[str, Any] = {
            "model": config.model or "tts-1",
            "voice": config.voice or "alloy",
            "response_format": config.format,
        }
        return named | config.extra
    named = {"streaming": True, "model": config.model, "voice": config.voice}
    if config.voice is None:
        named["speaker"] = config.speaker or 0
    if config.format != "wav":
        named["format"] = config.format
    return {name: value for name, value in named.items() if value is not None} | config.extra


def headers(api: str) -> dict[str, str]:
    """The headers of every request; an OPENAI_API_KEY is sent only to OpenAI's route."""
    named = {"Accept-Encoding": "identity", "User-Agent": f"vox-serve-bench/{__version__}"}
    key = os.environ.get("OPENAI_API_KEY")
    if not key or api != "openai":
        return named
    if not (key.isascii() and key.isprintable()):
        raise ConfigError("OPENAI_API_KEY must be printable ASCII")
    return named | {"Authorization": f"Bearer {key}"}


def _cause(error: BaseException) -> str:
    """The root cause of a failed connection, such as a closed port or too few file descriptors."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    if isinstance(error, BaseExceptionGroup):  # one for each address of the host
        return _cause(error.exceptions[-1])
    return str(error)


async def _detail(response: httpx.Response) -> str:
    """The message in an error's body, or the beginning of the body if it has none."""
    content = b""
    async for data in response.aiter_raw():
        content += data
        if len(content) > 65_536:
            break
    try:
        message = json.loads(content)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = content.decode(errors="replace")
    return " ".join(str(message).split())[:DETAIL_CHARACTERS]
