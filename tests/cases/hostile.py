"""Malicious requests: each must quickly end in speech or a clear error."""

from __future__ import annotations

import base64
import gzip
import io
import json

import numpy as np
import soundfile


def texts(length: int) -> dict[str, str]:
    """Texts of about this many characters."""

    def filled(unit: str) -> str:
        return f"{unit * (length // len(unit))} end"

    return {
        "lone surrogates": filled("a\ud83d "),
        "NULs": filled("a\x00"),
        "digits": filled("9"),
        "decimals": filled("9."),
        "exponents": filled("1e9"),
        "superscripts": filled("2²³"),
        "letters": filled("a"),
        "consonants": filled("bcdfg "),
        "capitals": filled("X"),
        "combining marks": "e" + filled("\u0301"),
        "right to left": filled("\u202eabc\u202c"),
        "isolates": filled("\u2067"),
        "zero width": filled("a\u200d"),
        "emoji families": filled("👨\u200d👩\u200d👧"),
        "flags": filled("🇺"),
        "quotes": filled("> "),
        "lists": "".join(f"{' ' * 2 * n}- a\n" for n in range(int(length**0.5))),
        "brackets": filled("["),
        "links": filled("[a]("),
        "images": filled("!["),
        "stars": filled("**a *"),
        "backticks": "".join("`" * n + "a" for n in range(1, int((2 * length) ** 0.5))),
        "tags": filled("<b>"),
        "comments": filled("<!-- "),
        "entities": filled("&amp"),
        "speak": "<speak>" + "<p>" * (length // 7) + "a" + "</p>" * (length // 7) + "</speak>",
        "laughs": '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "ha">]><speak>&a;</speak>',
        "pauses": filled("[pause 0.01s] a "),
        "money": filled("A$1.5M"),
        "codes": filled("f0:"),
        "dates": filled("2024-01-02T10:30:00Z"),
        "telephones": filled("call 1-800-555-0199 x1 "),
        "addresses": filled("http://a:b@c.d/?e=f&"),
        "one word": filled("pneumono"),
        "line ends": filled("a\r\n\r\n"),
        "escapes": filled("\x1b[31m"),
        "mojibake": filled("â€™"),
        "ligatures": filled("ﷺ"),
        "private": filled("\ue000a "),
        "noncharacters": filled("\uffffa "),
    }


def sound(kind: str) -> bytes:
    """An audio file that misstates what it is or how long it is."""
    if kind == "claims 4 GiB":
        wav = io.BytesIO()
        soundfile.write(wav, np.zeros(800), 8000, format="WAV")
        data = bytearray(wav.getvalue())
        data[4:8] = data[40:44] = b"\xff\xff\xff\xff"
        return bytes(data)
    if kind == "an hour of silence":
        flac = io.BytesIO()
        soundfile.write(flac, np.zeros(3600 * 8000, np.int16), 8000, format="FLAC")
        return flac.getvalue()
    if kind == "not numbers":
        wav = io.BytesIO()
        soundfile.write(wav, np.full(8000, np.nan), 8000, format="WAV", subtype="FLOAT")
        return wav.getvalue()
    if kind == "gzip of zeros":
        return gzip.compress(bytes(50_000_000))
    return {"nothing": b"", "noise": bytes(range(256)) * 40, "header": b"RIFF\x24\0\0\0WAVEfmt "}[
        kind
    ]


SOUNDS = (
    "claims 4 GiB", "an hour of silence", "not numbers", "gzip of zeros", "nothing", "noise",
    "header",
)  # fmt: skip


def turn(audio: bytes) -> dict[str, object]:
    return {"speaker": 0, "text": "a", "audio": base64.b64encode(audio).decode()}


BODIES: dict[str, bytes] = {
    "deep": b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep and open": b'{"a":' * 100_000,
    "twice": b'{"text": "5", "text": "6"}',
    "NaN": b'{"text": "5", "temperature": NaN}',
    "infinite": b'{"text": "5", "temperature": 1e999}',
    "huge number": b'{"text": "5", "seed": ' + b"9" * 100_000 + b"}",
    "huge exponent": b'{"text": "5", "top_k": 1e100000000}',
    "escapes": b'{"text": "' + b"\\u0000" * 5000 + b'5"}',
    "many fields": json.dumps({"text": "5"} | {f"f{n}": n for n in range(20_000)}).encode(),
    "long field": json.dumps({"text": "5", "x" * 500_000: 1}).encode(),
    "many pronunciations": json.dumps(
        {"text": "5", "pronunciations": {f"w{n}": "x" for n in range(50_000)}}
    ).encode(),
    "not UTF-8": b'{"text": "\xff\xfe\xfd"}',
    "not JSON": b"\x00" * 100_000,
}
