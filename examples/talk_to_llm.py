"""Talk to a language model and hear it sentence by sentence, while it is still writing.

    OPENAI_API_KEY=none python examples/talk_to_llm.py --model llama3.2
Works with any server that has OpenAI's chat API; the default is Ollama on this machine.
Needs: openai, websockets, and a player that reads WAV from its standard input.
"""

import argparse
import asyncio
import json
import os
import shlex

from openai import AsyncOpenAI
from websockets.asyncio.client import ClientConnection, connect


async def write(llm: AsyncOpenAI, model: str, chat: list, socket: ClientConnection) -> None:
    answer = ""
    async for event in await llm.chat.completions.create(model=model, messages=chat, stream=True):
        if event.choices and (bit := event.choices[0].delta.content):  # cut anywhere
            answer += bit
            await socket.send(json.dumps({"type": "text", "text": bit}))
    await socket.send(json.dumps({"type": "end"}))
    chat.append({"role": "assistant", "content": answer})


async def play(socket: ClientConnection, command: str) -> None:
    player = await asyncio.create_subprocess_exec(*shlex.split(command), stdin=-1)
    async for message in socket:
        if isinstance(message, bytes):
            player.stdin.write(message)
            await player.stdin.drain()
        elif (event := json.loads(message))["type"] == "segment":
            print(event["text"], flush=True)
        elif event["type"] == "error":
            print(f"not spoken: {event['error']['message']}", flush=True)
    await player.communicate(b"")  # closes its input, and waits until it has played everything


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--server", default="ws://localhost:8000", help="vox_serve")
    parser.add_argument("--llm", default="http://localhost:11434/v1")
    parser.add_argument("--model", required=True, help="its name there")
    parser.add_argument("--player", default="ffplay -nodisp -autoexit -loglevel error -")
    flags = parser.parse_args()
    llm, key = AsyncOpenAI(base_url=flags.llm), os.environ.get("VOX_SERVE_API_KEY", "none")
    chat, start = [], {"type": "start", "format": "wav", "conversation": os.urandom(16).hex()}
    while question := (await asyncio.to_thread(input, "> ")).strip():  # an empty line ends it
        chat.append({"role": "user", "content": question})
        speech = connect(f"{flags.server}/v1/audio/stream", additional_headers={"X-Api-Key": key})
        async with speech as tts, asyncio.TaskGroup() as both:
            await tts.send(json.dumps(start))
            both.create_task(write(llm, flags.model, chat, tts))
            both.create_task(play(tts, flags.player))


asyncio.run(main())
