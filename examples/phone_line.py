"""Answer telephone calls with speech: 8 kHz mu-law, over Twilio's Media Streams.

    python examples/phone_line.py "Thank you for calling. Press any key to hear this again."

TwiML: <Response><Connect><Stream url="wss://HOST/"/></Connect></Response>; a proxy handles TLS.
Needs: websockets.
"""

import argparse
import asyncio
import base64
import json
import os

from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("text")
parser.add_argument("--server", default="ws://localhost:8000", help="vox_serve")
parser.add_argument("--port", type=int, default=9000, help="to listen on")
flags = parser.parse_args()
key = {"X-Api-Key": os.environ.get("VOX_SERVE_API_KEY", "none")}


async def speak(call: ServerConnection, stream: dict[str, str]) -> None:
    await call.send(json.dumps({"event": "clear", **stream}))  # drops sound not played yet
    async with connect(f"{flags.server}/v1/audio/stream", additional_headers=key) as tts:
        start = {"type": "start", "format": "mulaw"}
        for event in (start, {"type": "text", "text": flags.text}, {"type": "end"}):
            await tts.send(json.dumps(event))
        async for sound in tts:
            if isinstance(sound, bytes):
                media = {"payload": base64.b64encode(sound).decode()}
                await call.send(json.dumps({"event": "media", "media": media, **stream}))
    await call.send(json.dumps({"event": "mark", "mark": {"name": "spoken"}, **stream}))


async def answer(call: ServerConnection) -> None:
    speaking = asyncio.create_task(asyncio.sleep(0))
    async for message in call:
        event = json.loads(message)
        if event["event"] in ("start", "dtmf"):  # the call begins; a key was pressed
            speaking.cancel()
            speaking = asyncio.create_task(speak(call, {"streamSid": event["streamSid"]}))
    speaking.cancel()


async def main() -> None:
    async with serve(answer, "127.0.0.1", flags.port) as server:
        print(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
        await server.serve_forever()


asyncio.run(main())
