"""Answer telephone calls with speech: 8 kHz mu-law, over Twilio's Media Streams.

    python examples/phone_line.py "Thank you for calling. Press any key to hear this again."

TwiML: <Response><Connect><Stream url="wss://HOST/"/></Connect></Response>; a proxy does the TLS.
Needs: av, numpy, websockets.
"""

import argparse
import asyncio
import base64
import json

import av
import numpy as np
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("text")
parser.add_argument("--server", default="ws://localhost:8000", help="vox_serve")
parser.add_argument("--port", type=int, default=9000, help="to listen on")
flags = parser.parse_args()
codec = av.CodecContext.create("pcm_mulaw", "w")
codec.sample_rate, codec.layout, codec.format = 8000, "mono", "s16"


async def speak(call: ServerConnection, stream: dict[str, str]) -> None:
    await call.send(json.dumps({"event": "clear", **stream}))  # what is not played yet
    async with connect(f"{flags.server}/v1/audio/stream") as tts:
        for event in ({"type": "start"}, {"type": "text", "text": flags.text}, {"type": "end"}):
            await tts.send(json.dumps(event))
        started, resampler = json.loads(await tts.recv()), av.AudioResampler("s16", "mono", 8000)
        async for pcm in tts:
            if isinstance(pcm, bytes):
                frame = av.AudioFrame.from_ndarray(np.frombuffer(pcm, "<i2")[None], "s16", "mono")
                frame.sample_rate = started["sample_rate"]
                packets = [p for part in resampler.resample(frame) for p in codec.encode(part)]
                media = {"payload": base64.b64encode(b"".join(map(bytes, packets))).decode()}
                await call.send(json.dumps({"event": "media", "media": media, **stream}))
    await call.send(json.dumps({"event": "mark", "mark": {"name": "spoken"}, **stream}))


async def answer(call: ServerConnection) -> None:
    speaking = asyncio.create_task(asyncio.sleep(0))
    async for message in call:
        event = json.loads(message)
        if event["event"] in ("start", "dtmf"):  # the call begins; a key was pressed
            speaking.cancel()
            speaking = asyncio.create_task(speak(call, {"streamSid": event["streamSid"]}))


async def main() -> None:
    async with serve(answer, "127.0.0.1", flags.port) as server:
        print(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
        await server.serve_forever()


asyncio.run(main())
