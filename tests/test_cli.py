"""vox-serve say | models | plugins, and the modules that they load."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import wave
from pathlib import Path

import av
import pytest

from vox_serve import __version__, cli

TONE = ["--model", "tone", "--plugins", "tests.tone"]


def say(text: str, output: Path, *flags: str) -> int:
    return cli.main(["say", text, "-o", str(output), *TONE, *flags])


def read(path: Path) -> bytes:
    with wave.open(str(path)) as reader:
        assert (reader.getnchannels(), reader.getsampwidth()) == (1, 2)
        assert reader.getframerate() == 8000
        return reader.readframes(10**6)


def test_say_writes_a_wav(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out.wav"
    assert say("9 frames", output) == 0
    assert len(read(output)) == 9 * 1280
    assert output.stat().st_size == 44 + 9 * 1280
    line = capsys.readouterr().out
    assert line.startswith(f"{output}: 0.72 s of audio in ")
    assert line.endswith("finish stop\n")


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3", "a.opus", "a.OGG", "a.aac", "a"])
def test_say_takes_the_format_from_the_ending(tmp_path: Path, name: str) -> None:
    assert say("9 frames", tmp_path / name) == 0
    with av.open(str(tmp_path / name)) as container:
        codec = container.streams.audio[0].codec_context.name
        samples = sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0))
    ending = name.lower().partition(".")[2]
    expected = {"": "pcm_s16le", "wav": "pcm_s16le", "mp3": "mp3float", "ogg": "opus"}
    assert codec == expected.get(ending, ending)
    assert samples == pytest.approx(0.72, abs=0.3)


class Pipe(io.StringIO):
    """Standard input or output with a binary buffer."""

    def __init__(self, content: bytes = b"") -> None:
        super().__init__()
        self.buffer = io.BytesIO(content)


def test_say_reads_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Case `pipes`: `echo Hello | vox-serve say -o out.wav`, and with `-`."""
    for text in ([], ["-"]):
        monkeypatch.setattr("sys.stdin", Pipe("\ufeff9 frames \u00e9".encode()))
        assert cli.main(["say", *text, "-o", str(tmp_path / "out.wav"), *TONE]) == 0
        assert len(read(tmp_path / "out.wav")) == 9 * 1280


def test_say_writes_to_standard_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Case `pipes`: `vox-serve say "Hello" -o - | ffmpeg`; the report goes to standard error."""
    pipe = Pipe()
    monkeypatch.setattr("sys.stdout", pipe)
    assert cli.main(["say", "9 frames", "-o", "-", *TONE]) == 0
    assert pipe.buffer.getvalue()[:4] == b"RIFF"
    assert len(pipe.buffer.getvalue()) == 44 + 9 * 1280
    assert pipe.getvalue() == ""
    assert "standard output: 0.72 s of audio" in capsys.readouterr().err
    pipe.buffer.seek(0)
    assert cli.main(["say", "9 frames", "-o", "-", "--format", "mulaw", *TONE]) == 0
    assert pipe.buffer.tell() == 9 * 640


def test_say_reads_a_file_of_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.txt").write_text("9 frames")
    output = tmp_path / "out.wav"
    assert cli.main(["say", "-f", str(tmp_path / "text.txt"), "-o", str(output), *TONE]) == 0
    assert len(read(output)) == 9 * 1280
    assert cli.main(["say", "5", "-f", "x", "-o", str(output), *TONE]) == 2
    assert "give a text or --file, not both" in capsys.readouterr().err
    assert cli.main(["say", "-f", str(tmp_path), "-o", str(output), *TONE]) == 2
    assert "cannot be read: Is a directory" in capsys.readouterr().err
    (tmp_path / "text.txt").write_bytes(b"\xff")
    assert cli.main(["say", "-f", str(tmp_path / "text.txt"), "-o", str(output), *TONE]) == 2
    assert "is not UTF-8" in capsys.readouterr().err


def test_say_without_a_text_at_a_terminal_asks_for_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Pipe, "isatty", lambda _: True)
    monkeypatch.setattr("sys.stdin", Pipe())
    assert cli.main(["say", "-o", "x.wav", *TONE]) == 2
    assert "give a text, --file FILE, or pipe a text in" in capsys.readouterr().err


def test_say_plays_if_no_output_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    played, player = tmp_path / "played", tmp_path / "aplay"
    player.write_text(f'#!/bin/sh\ncp "$2" {played}\n')
    player.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setattr("vox_serve.say.PLAYERS", (("aplay", "-q", "{file}"),))
    assert cli.main(["say", "9 frames", *TONE]) == 0
    assert len(read(played)) == 9 * 1280
    assert capsys.readouterr().out.startswith("played: 0.72 s")
    player.write_text("#!/bin/sh\necho no sound card >&2\nexit 1\n")
    assert cli.main(["say", "9 frames", *TONE]) == 2
    assert "aplay cannot play: no sound card; give --output FILE" in capsys.readouterr().err
    player.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))  # hides the players of this system
    assert cli.main(["say", "9 frames", "--model", "nothing"]) == 2
    assert "nothing here can play audio (aplay); give --output FILE" in capsys.readouterr().err


@pytest.mark.parametrize("rate", ["16000", "7999", "fast"])
def test_say_takes_a_sample_rate(
    tmp_path: Path, rate: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.wav"
    if rate == "fast":
        with pytest.raises(SystemExit):
            say("9 frames", output, "--sample-rate", rate)
    elif rate == "7999":
        assert say("9 frames", output, "--sample-rate", rate) == 2
        assert "sample_rate must be from 8000 to 48000, not 7999" in capsys.readouterr().err
    else:
        assert say("9 frames", output, "--sample-rate", rate) == 0
        with wave.open(str(output)) as reader:
            assert (reader.getframerate(), reader.getnframes()) == (16_000, 9 * 1280)


def test_say_speaks_a_long_text_in_parts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "This says 9 things to you all. " * 8  # two sentences to a part
    assert say(text, tmp_path / "out.pcm") == 0
    assert (tmp_path / "out.pcm").stat().st_size == 4 * 9 * 1280
    assert capsys.readouterr().out.endswith("finish stop\n")


def test_say_writes_raw_samples(tmp_path: Path) -> None:
    assert say("9 frames", tmp_path / "out.pcm") == 0
    assert (tmp_path / "out.pcm").stat().st_size == 9 * 1280


def test_say_rejects_an_unknown_file_extension_before_it_loads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.wma"
    assert cli.main(["say", "5", "-o", str(output), "--model", "nothing"]) == 2
    error = capsys.readouterr().err
    assert "'wma' is not an audio format; choose from wav, pcm, flac" in error
    assert error.count("\n") == 1
    assert not output.exists()


def test_say_takes_speaker_voice_and_settings(tmp_path: Path) -> None:
    audio = []
    for number, flags in enumerate(
        [
            ["--speaker", "0"],
            ["--speaker", "1"],
            ["--voice", "hum_b"],
            ["--temperature", "1", "--seed", "3"],
            ["--temperature", "1", "--seed", "3"],
            ["--max_seconds", "0.1"],
        ]
    ):
        output = tmp_path / f"{number}.wav"
        assert say("5 frames", output, *flags) == 0
        audio.append(read(output))
    assert audio[0] != audio[1] == audio[2]
    assert audio[0] != audio[3] == audio[4]
    assert len(audio[5]) == 1280


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        ("", [], "text is empty"),
        ("unspeakable", [], "no tone can say"),
        ("boom 5", [], "the model failed"),
        ("5", ["--speaker", "9"], "unknown speaker 9"),
        ("5", ["--voice", "z"], "unknown voice 'z'"),
        ("5", ["--model", "nothing"], "unknown model 'nothing'"),
        ("5", ["--top_k", "-1"], "top_k"),
        ("5", ["--device", "toaster"], "toaster"),
    ],
)
def test_say_reports_errors_in_one_line(
    tmp_path: Path, text: str, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.wav"
    assert say(text, output, *flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("vox-serve say: ")
    assert error.count("\n") == 1
    assert message in error
    assert not output.exists()


@pytest.mark.parametrize("name", ["no/such/out.wav", "."], ids=["parent", "itself"])
def test_say_checks_the_output_before_it_loads_a_model(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["say", "5", "-o", str(tmp_path / name), "--model", "nothing"]) == 2
    error = capsys.readouterr().err
    assert "directory" in error
    assert error.count("\n") == 1


@pytest.fixture
def two_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two installed distributions: one offers the tone, one cannot be imported."""
    for name, module in (("hum", "tests.tone"), ("broken", "no_such_module")):
        info = tmp_path / f"{name}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[vox_serve]\n{name} = {module}\n")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("two_plugins")
def test_models_lists_aliases_and_hub_ids(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["tone", "a", "tone", "that", "hums"] in lines
    assert ["tone:", "hums"] in lines
    assert ["test/tone"] in lines


@pytest.mark.usefixtures("two_plugins")
def test_plugins_lists_working_and_broken_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plugins"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["hum"].split() == ["hum", "1.2", "tone,", "tone"]
    assert lines["broken"].split()[:3] == ["broken", "1.2", "ModuleNotFoundError:"]


def test_launch_has_the_flags_of_the_module(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["launch", "--port", "http"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("vox-serve launch: ")


@pytest.mark.parametrize("arguments", [[], ["sing"], ["say", "--outp", "x"]])
def test_bad_command_lines_are_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"vox-serve {__version__}\n"


def test_help_lists_and_the_server_load_no_torch() -> None:
    program = """
import sys
import vox_serve.cli, vox_serve.launch, vox_serve.server.app
helps = [[*command, "--help"] for command in ([], ["launch"], ["say"], ["bench"])]
for arguments in (*helps, ["models"], ["plugins"]):
    try:
        vox_serve.cli.main(arguments)
    except SystemExit as end:
        assert end.code == 0, arguments
print("loaded:", *sorted({"torch", "transformers", "tqdm"} & set(sys.modules)))
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "loaded:"


def test_plugins_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plugins", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    fields = {"name", "version", "models", "checkpoints", "postprocess", "error"}
    assert all(set(info) == fields for info in listed)
