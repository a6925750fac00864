"""Make a voice message for Telegram or Discord: Opus in Ogg, with its length and waveform.

    python examples/voice_message.py "Dinner is at eight." -o message.ogg
    TELEGRAM_TOKEN=... python examples/voice_message.py "Dinner is at eight." --telegram CHAT

It prints the attachment's fields for Discord (a message with flag 8192, IS_VOICE_MESSAGE).
Needs: av, httpx, numpy.
"""

import argparse
import base64
import json
import os
from pathlib import Path

import av
import httpx
import numpy as np

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("text")
parser.add_argument("-o", "--output", type=Path, default=Path("message.ogg"))
parser.add_argument("--voice", help="see GET /voices")
parser.add_argument("--telegram", metavar="CHAT", help="send it into this chat")
parser.add_argument("--server", default="http://localhost:8000", help="vox_serve")
flags = parser.parse_args()

body = {"text": flags.text, "voice": flags.voice, "format": "opus"}
key = {"X-Api-Key": os.environ.get("VOX_SERVE_API_KEY", "none")}
answer = httpx.post(f"{flags.server}/generate", json=body, headers=key, timeout=None)
if answer.is_error:
    parser.exit(1, answer.json()["error"]["message"] + "\n")
flags.output.write_bytes(answer.content)

with av.open(flags.output) as file:
    frames = list(file.decode(audio=0))
samples = np.concatenate([frame.to_ndarray()[0] for frame in frames])
peaks = np.array([np.abs(part).max() for part in np.array_split(samples, 256)])
wave = (255 * peaks / max(peaks.max(), 1e-9)).astype(np.uint8)
seconds = len(samples) / frames[0].sample_rate
attachment = {
    "filename": flags.output.name,
    "duration_secs": round(seconds, 2),
    "waveform": base64.b64encode(wave.tobytes()).decode(),
}
print(json.dumps(attachment))

if flags.telegram:
    api = os.environ.get("TELEGRAM_API", "https://api.telegram.org")
    sent = httpx.post(
        f"{api}/bot{os.environ['TELEGRAM_TOKEN']}/sendVoice",
        data={"chat_id": flags.telegram, "duration": round(seconds)},
        files={"voice": (flags.output.name, answer.content, "audio/ogg")},
    )
    if sent.is_error:
        parser.exit(1, f"Telegram: {sent.text}\n")
