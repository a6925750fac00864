"""Make an audiobook with chapters (.m4b) from an epub or text file.

    python examples/audiobook.py book.epub -o book.m4b
In a text, a line such as "Chapter 3", "# The Storm" or "IV." begins a chapter.
Needs: av, httpx, numpy; for .epub also ebooklib, whose licence is the AGPL.
"""

import argparse
import os
import re
import textwrap
from pathlib import Path

import av
import httpx
import numpy as np

TITLE = re.compile(r"^(#.+|(?:chapter|part)\b.{0,60}|[IVXLC]+\.)$", re.IGNORECASE | re.MULTILINE)


def chapters(path: Path) -> list[str]:  # the first line of each is its title
    if path.suffix != ".epub":
        _, *rest = TITLE.split(f"# {path.stem}\n\n{path.read_text()}")
        return [a.strip("# ") + b for a, b in zip(rest[::2], rest[1::2], strict=True)]
    from ebooklib import epub
    from lxml import html  # a dependency of ebooklib

    book = epub.read_epub(path)
    trees = [html.fromstring(book.get_item_with_id(key).content) for key, _ in book.spine]
    wanted = "//body//*[self::h1 or self::h2 or self::h3 or self::p][not(ancestor::nav)]"
    texts = [[" ".join(block.text_content().split()) for block in t.xpath(wanted)] for t in trees]
    return ["\n\n".join(filter(None, blocks)) for blocks in texts if any(blocks)]


parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("book", type=Path)
parser.add_argument("-o", "--output", type=Path, required=True)
parser.add_argument("--server", default="http://localhost:8000")
flags = parser.parse_args()
key = {"X-Api-Key": os.environ.get("VOX_SERVE_API_KEY", "none")}
http = httpx.Client(base_url=flags.server, timeout=None, headers=key)
rate = http.get("/models").raise_for_status().json()["models"][0]["sample_rate"]
fields = {"format": "pcm", "conversation": os.urandom(8).hex()}  # keeps one voice to the end
with av.open(flags.output, "w", format="ipod") as file:
    stream, marks, spoken = file.add_stream("aac", rate=rate, layout="mono"), [], 0
    for number, chapter in enumerate(chapters(flags.book)):
        start, title = spoken, chapter.partition("\n")[0]
        for text in (p for block in chapter.split("\n\n") for p in textwrap.wrap(block, 8000)):
            answer = http.post("/generate", json={"text": text, **fields})
            if answer.status_code == 422:  # nothing to say, such as "* * *"
                continue
            sound = np.frombuffer(answer.raise_for_status().content + bytes(rate), "<i2")
            frame = av.AudioFrame.from_ndarray(sound[None], "s16", "mono")
            frame.sample_rate, frame.pts, spoken = rate, spoken, spoken + len(sound)
            file.mux(stream.encode(frame))
        print(f"{title}: {(spoken - start) / rate:.0f} s", flush=True)
        marks.append({"id": number, "start": start, "end": spoken, "metadata": {"title": title}})
    file.mux(stream.encode())
    file.set_chapters([{"time_base": stream.time_base, **mark} for mark in marks])
