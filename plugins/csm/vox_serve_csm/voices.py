"""The two conversational speakers and their reference clips, or a fine-tune's speakers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from vox_serve import CheckpointError, EncodingCodec, Segment, Voice
from vox_serve.audio import AudioUnreadable, read_audio

MAX_CLIP_SECONDS = 60.0

# Transcripts of prompts/conversational_a.wav and _b.wav of sesame/csm-1b.  The clips are in the
# checkpoint, the transcripts in Sesame's demonstration script.
TRANSCRIPTS = {
    "conversational_a": (
        "like revising for an exam I'd have to try and like keep up the momentum because I'd "
        "start really early I'd be like okay I'm gonna start revising now and then like "
        "you're revising for ages and then I just like start losing steam I didn't do that "
        "for the exam we had recently to be fair that was a more of a last minute scenario "
        "but like yeah I'm trying to like yeah I noticed this yesterday that like Mondays I "
        "sort of start the day with this not like a panic but like a"
    ),
    "conversational_b": (
        "like a super Mario level. Like it's very like high detail. And like, once you get "
        "into the park, it just like, everything looks like a computer game and they have all "
        "these, like, you know, if, if there's like a, you know, like in a Mario game, they "
        "will have like a question block. And if you like, you know, punch it, a coin will "
        "come out. So like everyone, when they come into the park, they get like this little "
        "bracelet and then you can go punching question blocks around."
    ),
}


def read_voices(
    directory: Path, codec: EncodingCodec, speakers: Sequence[str] = ()
) -> tuple[Voice, ...]:
    """A fine-tune's speakers by id, without context clips; or Sesame's, 0 and 1.

    Both of Sesame's get both clips as context, as in Sesame's demonstration.  In a checkpoint
    without `prompts/`, they have no context.

    Raises:
        CheckpointError: a clip exists but cannot be read.
    """
    if speakers:
        return tuple(Voice(name, number) for number, name in enumerate(speakers))
    segments = []
    for speaker, (name, transcript) in enumerate(TRANSCRIPTS.items()):
        path = directory / "prompts" / f"{name}.wav"
        if path.is_file():
            try:
                audio = read_audio(path, codec.sample_rate, MAX_CLIP_SECONDS)
            except AudioUnreadable as error:
                raise CheckpointError(f"{path}: {error}") from error
            codes = codec.encode(torch.from_numpy(audio)).cpu()
            segments.append(Segment(speaker, transcript, codes=codes))
    return tuple(Voice(name, i, tuple(segments)) for i, name in enumerate(TRANSCRIPTS))
