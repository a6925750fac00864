"""Writes tables and docs/performance.md; uses only the JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.titles import COLUMNS, SETTINGS, TARGETS, real_time

ROWS = (
    ("frame", "s per frame", 1.0),
    ("first_audio", "first audio, s", 1.0),
    ("real_time_factor", "time over audio", 1.0),
    ("threads", "threads", 1.0),
    ("first_run", "first run, s", 1.0),
)
SPLIT = ("advance", "emit", "codec")
Result = Mapping[str, Any]


def tables(found: Result) -> str:
    """All results as Markdown."""
    parts = [_targets(found["results"])]
    for name, result in found["results"].items():
        parts += [f"## {SETTINGS[name]}", *_setting(result)]
    return "\n\n".join(parts) + "\n"


def page(found: Result, file: str, picture: str) -> str:
    """The text of a page of docs/; `file` is its name, `picture` that of its picture's file."""
    instructions = found["machine"].get("instructions")
    title = f"Performance with {instructions}" if instructions else "Performance"
    facts = {**found["machine"], "command": f"`{found['command']}`"}
    machine = _table(["machine", ""], ([key, str(value)] for key, value in facts.items()))
    return PAGE.format(
        title=title,
        file=file,
        machine=machine,
        picture=picture,
        limit=found["compile_seconds"],
        tables=tables(found),
    )


def _setting(result: Result) -> list[str]:
    parts = [_speed(result)]
    if result["left_out"]:
        why = "\n".join(f"- {COLUMNS[key]}: {text}" for key, text in result["left_out"].items())
        parts.append(f"Left out:\n\n{why}")
    parts += ["### Our frame", _frame(result), "### Memory", _memory(result)]
    parts += ["### Beside float32", _quality(result["quality"])]
    if "served" in result:
        parts += ["### Through the server", _served(result["served"])]
    taken = sum(result["seconds"].values())
    parts.append(
        f"Measured in {taken:.0f} s; the process that held all columns took "
        f"{_gib(result['peak'])} at most."
    )
    return parts


def _speed(result: Result) -> str:
    keys = [key for key in COLUMNS if any(key in b for b in result["batches"].values())]
    rows = []
    for batch, columns in result["batches"].items():
        frames = result["frames"][batch]
        length = f"{frames} frames" if frames else "to the end"
        rows.append([f"**batch {batch}**, {length}, {result['rounds'][batch]} rounds"])
        rows[-1] += [""] * len(keys)
        for figure, title, scale in ROWS:
            cells = [_cell(columns.get(key, {}).get(figure), scale) for key in keys]
            rows.append([title, *cells])
        rows.append(["real time, all rows", *(_aggregate(batch, columns.get(k)) for k in keys)])
    return _table(["", *(COLUMNS[key] for key in keys)], rows)


def _aggregate(batch: str, column: Result | None) -> str:
    return f"{real_time(int(batch), column['frame'][0]):.2f}x" if column else ""


def _frame(result: Result) -> str:
    """Split of the frame, share of the floor, and first audio, of our columns."""
    keys = list(result["floor"])
    rows = []
    for batch, columns in result["batches"].items():
        for phase in SPLIT:
            cells = [_cell(columns[key].get(f"{phase}_per_frame")) for key in keys]
            rows.append([f"batch {batch}: {phase}, s per frame", *cells])
    floors = [result["floor"][key] for key in keys]
    rows += [
        ["a frame reads, MB", *(f"{f['bytes'] / 1e6:.0f}" for f in floors)],
        ["weights are read at, GB/s", *(f"{f['bytes_per_second'] / 1e9:.1f}" for f in floors)],
        ["floor of a frame, s", *(f"{f['seconds']:.4f}" for f in floors)],
        ["share of the floor at batch 1", *(f"{100 * f['share']:.0f} %" for f in floors)],
    ]
    first = [result["first_audio"][key] for key in keys]
    seconds = first[0]["voice_seconds"][0]
    for figure, title in (
        ("text_alone", "text alone"),
        ("voice_cold", f"a new voice of {seconds:.0f} s"),
        ("voice_cached", "the same voice again, cached"),
    ):
        cells = [_cell(each[figure]) for each in first]
        rows.append([f"first audio, {title}, s", *cells])
    return _table(["", *(COLUMNS[key] for key in keys)], rows)


def _memory(result: Result) -> str:
    keys = list(result["loading"])
    loaded = [result["loading"][key] for key in keys]
    rows = [
        ["weights", *(_gib(each["weights"]) for each in loaded)],
        ["rise while loading and warming up", *(_gib(each["rise"]) for each in loaded)],
        ["that is, times the weights", *(f"{e['rise_over_weights']:.2f}" for e in loaded)],
        ["peak of a process that spoke", *(_gib(each["peak"]) for each in loaded)],
        ["load, s", *(f"{each['seconds']:.1f}" for each in loaded)],
    ]
    return _table(["", *(COLUMNS[key] for key in keys)], rows)


def _quality(quality: Result) -> str:
    forms = quality["forms"]
    figures = (
        ("equal_first", "equal codes, codebook 0, %", 100.0),
        ("equal", "equal codes, all codebooks, %", 100.0),
        ("worst_error", "largest error of a logit over the spread", 1.0),
        ("mean_error", "mean error of a logit over the spread", 1.0),
    )
    rows = [
        [title, *(f"{scale * form[figure]:.4g}" for form in forms.values())]
        for figure, title, scale in figures
    ]
    margin = next(iter(forms.values()))["margin"]
    return (
        f"{quality['texts']} texts, {quality['frames']} frames, {quality['codes']} codes. In "
        f"float32 the two likeliest codes are {margin:.2g} spreads apart (median).\n\n"
        + _table(["", *forms], rows)
    )


def _served(served: Result) -> str:
    single, loops = served["single"], served["closed_loop"]
    rows = [
        ["requests", *(str(each["requests"]) for each in loops)],
        ["ok", *(str(each["ok"]) for each in loops)],
        ["first audio p50, ms", *(_ms(each["first_audio"]["p50"]) for each in loops)],
        ["first audio p95, ms", *(_ms(each["first_audio"]["p95"]) for each in loops)],
        ["time over audio p50", *(_number(each["real_time_factor"]["p50"]) for each in loops)],
        ["underruns", *(str(each["underruns"]) for each in loops)],
        ["viable, %", *(_number(each["viable_share"], 100) for each in loops)],
    ]
    return (
        f"One greedy stream at a time: first audio {_cell(single['first_audio'])} s, time over "
        f"audio {_cell(single['real_time_factor'])}. `vox-serve bench`, closed loop, "
        f"{served['duration']:.0f} s for each number of clients:\n\n"
        + _table(["clients", *(f"{each['load']:g}" for each in loops)], rows)
    )


def _targets(results: Result) -> str:
    rows = []
    for target in TARGETS:
        if target.setting in results:
            measured, met = target.read(results[target.setting])
            rows.append([target.name, measured, "yes" if met else "no"])
    return _table(["aimed at", "measured", "met"], rows)


def _table(head: Sequence[str], rows: Iterator[Sequence[str]] | Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def _cell(values: Sequence[float] | None, scale: float = 1.0) -> str:
    """Median (minimum to maximum)."""
    if values is None:
        return ""
    middle, least, most = (scale * value for value in values)
    if least == most:
        return f"{middle:.3g}"
    return f"{middle:.3g} ({least:.3g} to {most:.3g})"


def _number(value: float | None, scale: float = 1.0) -> str:
    return "-" if value is None else f"{scale * value:.3g}"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{1000 * value:.0f}"


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"


PAGE = """# {title}

This page is written by `make bench ARGS="--page docs/{file}"`; nothing in it is typed by hand.
[Benchmarking a server](benchmarking.md) says how to measure your own.

{machine}

The load average is that of the minute before the run. Figures are medians (least to most) of the
rounds; a first round, not counted, warms up. "Time over audio" below 1 is faster than real time;
"real time, all rows" is the batch times 0.08 s over the seconds per frame.

![Seconds per frame by batch, and the split of our frame]({picture})

## What is the same, and what is not

- All columns of a setting were in memory together and ran in turn within each round. For batch 16,
  vox_serve was reloaded with that many slots, and columns that do not take part had been unloaded;
  at full size, the default ran in turn with bfloat16 and transformers, and then again with int8,
  because all of them need more than 24 GB. Memory while loading, the comparison with float32, and
  the server were measured separately.
- The same: checkpoint, prompt, batch, greedy sampling and, with random weights, the number of
  frames. Each side decodes with its own codec. vox_serve and transformers read the same weights;
  codes differ between forms, which does not change the time per frame.
- The demo voice speaks to the end of the text, at most 150 frames for transformers; forms may end
  at different frames.
- Forms: "vox_serve" is the default on a CPU: float16 weights with float32 sums, and the codec in
  float32. On a processor with bfloat16 instructions, products of more than two rows, prompts
  included, are in bfloat16; "float16, 4 rows" compares four copies of a text with float32. int8
  rounds weights and inputs of the language model. The peers compute in bfloat16, including the
  codec in transformers; moshi's codec is in float32. On a processor without bfloat16
  instructions, transformers computes in float32, which is faster there; at full size, only for
  batch 16, because it does not fit beside the other columns. So bfloat16 holds transformers back
  at batch 4 and in first audio on such a processor, and moshi everywhere.
- All columns run in one process as vox_serve's engine sets it up: idle threads spin for
  some microseconds and then sleep, and freed memory is kept; the peers benefit from this too.
- Threads: vox_serve chooses their number. If that is one, the peers were tried with one thread and
  with all, and run with the faster; otherwise they run with all.
- vox_serve and moshi decode each frame when it is made. Transformers decodes at the end, row by
  row, and returns nothing before: its first audio is a run of one frame, and its time per frame
  the difference to a longer run.
- "transformers, compiled": static caches and torch.compile, as in its documentation of CSM,
  with its own flag for devices other than CUDA, on the weights of the other column. It compiles
  for each batch size, so it runs only at batch 1. Its first run, which compiles, may take
  {limit} s. They do not recommend this on a CPU, where eager may well be faster.
- moshi: `LMGen` with the sizes of the checkpoint and other random weights. The text stream takes
  the place of codebook 0 and the depformer generates the 31 others; the depformer's steps share one
  set of weights, and as many heads share keys and values as in CSM, so a frame reads the same
  matrices. Not the same: it has no prompt, so its first audio includes no prefill; its attention
  runs over all positions of its cache each time; the depformer projects the hidden state again in
  each of its steps and has separate embedding tables; RoPE is not scaled. It runs at batch 1
  and 4. Its torch.compile is on, as by default.
- The floor is the time to read the weights of a frame once, by products of matrices in the same
  form with a vector, one after another, with all threads. It is the best of 40 runs, half of them
  before the batches and half after, because the speed of a shared machine's memory varies. It does
  not include the codec, keys or values. It measures main memory: a model as small as the demo voice
  may stay in the processor's caches.
- First audio with a voice: "text alone" has no voice; a new voice's context of random codes is run
  in full; the second request finds it in the prefix cache. The peers do not cache prefixes.
- Compared with float32: every form gets the codes of the float32 form at every position, and its
  choice is compared with that form's. The spread is the standard deviation of the float32 logits
  over the vocabulary. Random weights have small margins between codes, so there the errors say more
  than the shares of equal codes.

{tables}"""
