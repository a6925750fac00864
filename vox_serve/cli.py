"""vox-serve launch | cluster | say | bench | plan | models | plugins | new-plugin | new-key."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import attrs

from vox_serve import __version__, launch
from vox_serve.audio.formats import FORMATS, RATE_RULE
from vox_serve.bench.config import BenchConfig
from vox_serve.config import DEFAULT_MODEL, DTYPES, EngineConfig
from vox_serve.errors import ConfigError, VoxServeError
from vox_serve.flags import Parser, add_flags, read_flags
from vox_serve.messages import SpeechRequest
from vox_serve.new_plugin import new_plugin
from vox_serve.plan.config import PlanConfig
from vox_serve.plugins import load_plugins
from vox_serve.server.access.keys import new_key
from vox_serve.text import Lexicon, Normalize, read_lexicon

RATE_HELP = f"of the audio, in Hz, {RATE_RULE} (default: the model's)"
NORMALIZE = (
    "auto writes numbers, signs and markup out as words; strict also refuses what cannot be "
    "spoken; off leaves the text unchanged"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["launch"]:  # its parser is shared with `-m vox_serve.launch`
        return launch.main(arguments[1:], "vox-serve launch")
    parsed = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        return int(parsed.run(parsed))
    except VoxServeError as error:
        print(f"vox-serve {parsed.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> Parser:
    parser = Parser(prog="vox-serve", description="Serve open text-to-speech models.")
    parser.add_argument("--version", action="version", version=f"vox-serve {__version__}")
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=Parser
    )
    commands.add_parser("launch", help="serve a model over HTTP")
    cluster = commands.add_parser("cluster", help="serve on several machines, with Ray Serve")
    _add_cluster(cluster)

    say = commands.add_parser("say", help="speak a text into a file, or aloud, without a server")
    text = "what to say; - or nothing reads standard input"
    say.add_argument("text", nargs="?", default="-", help=text)
    say.add_argument("-f", "--file", type=Path, default=None, help="a text file, instead of a text")
    output = "the file to write, - for standard output (default: play it)"
    say.add_argument("-o", "--output", type=Path, default=None, help=output)
    kind = f"{', '.join(FORMATS)} (default: what the file's ending names, else wav)"
    say.add_argument("--format", default=None, help=kind)
    say.add_argument("--sample-rate", "--sample_rate", type=int, default=None, help=RATE_HELP)
    say.add_argument("--language", default=None, help="a tag such as en-GB: how dates are read")
    say.add_argument("--speaker", type=int, default=None, help="speaker id (default: 0)")
    say.add_argument("--voice", default=None, help="a voice by name, instead of --speaker")
    say.add_argument("--normalize", choices=[*Normalize], default="auto", help=NORMALIZE)
    say.add_argument("--lexicon", type=Path, default=None, help="a JSON file of pronunciations")
    add_flags(say, EngineConfig)
    say.set_defaults(run=_say)

    bench = commands.add_parser("bench", help="measure a speech server from the client side")
    bench.add_argument("url", help="the server's root, or its /generate or /v1/audio/speech")
    add_flags(bench, BenchConfig)
    bench.set_defaults(run=_bench)

    plan = commands.add_parser("plan", help="simulate a load: how many devices does it need?")
    plan.add_argument("costs", type=Path, help="JSON file of what the steps cost on the device")
    add_flags(plan, PlanConfig)
    measured = plan.add_argument_group("what --measure loads")
    measured.add_argument("--model", default=DEFAULT_MODEL, help="alias, hub id or directory")
    measured.add_argument("--device", default="auto", help="torch device (default: auto)")
    measured.add_argument("--dtype", default="auto", choices=DTYPES, help="number format")
    plan.set_defaults(run=_plan)

    models = commands.add_parser("models", help="list what --model accepts")
    models.set_defaults(run=_models)
    plugins = commands.add_parser("plugins", help="list the installed plugins")
    plugins.add_argument("--json", action="store_true", help="as JSON, for programs")
    plugins.set_defaults(run=_plugins)

    new = commands.add_parser("new-plugin", help="create a working plugin to start from")
    new.add_argument("name", help="lower-case letters, digits and _")
    new.add_argument("--directory", type=Path, default=Path(), help="parent directory (default: .)")
    new.set_defaults(run=_new_plugin)

    key = commands.add_parser(
        "new-key", help="make a key for --api-keys-file: the key on stderr, its line on stdout"
    )
    key.add_argument("name", help="whose it is: letters, digits, '_' and '-'")
    key.set_defaults(run=_new_key)
    return parser


def _add_cluster(cluster: Parser) -> None:
    actions = cluster.add_subparsers(
        dest="action", required=True, metavar="ACTION", parser_class=Parser
    )
    up = actions.add_parser("up", help="deploy, or replace what runs without failing a request")
    up.add_argument("config", type=Path, help="YAML file: models, server, ingress")
    up.add_argument("--address", default="auto", help="of the Ray cluster (default: auto)")
    shown = "print Ray Serve's configuration instead, for `serve deploy` or KubeRay"
    up.add_argument("--print", action="store_true", dest="show", help=shown)
    cluster.set_defaults(run=_cluster)


def _say(arguments: argparse.Namespace) -> int:
    from vox_serve.workers.threads import let_threads_sleep

    let_threads_sleep()
    from vox_serve.say import say  # imports torch

    config = read_flags(arguments, EngineConfig)
    if arguments.voice is not None and arguments.speaker is not None:
        raise ConfigError("give --voice or --speaker, not both")
    request = SpeechRequest(
        "say",
        _text(arguments),
        arguments.speaker or 0,
        arguments.voice,
        normalize=Normalize(arguments.normalize),
        language=arguments.language,
    )
    lexicon = read_lexicon(arguments.lexicon) if arguments.lexicon else Lexicon()
    output: Path | None = arguments.output
    report = say(config, request, output, lexicon, arguments.format, arguments.sample_rate)
    print(report, file=sys.stderr if output == Path("-") else sys.stdout)
    return 0


def _text(arguments: argparse.Namespace) -> str:
    """The text to say, from wherever it comes.  Raises ConfigError."""
    if arguments.file is not None:
        if arguments.text != "-":
            raise ConfigError("give a text or --file, not both")
        try:
            return _decoded(arguments.file.read_bytes(), str(arguments.file))
        except OSError as error:
            raise ConfigError(f"{arguments.file} cannot be read: {error.strerror}") from error
    if arguments.text != "-":
        return str(arguments.text)
    if sys.stdin.isatty():
        raise ConfigError("give a text, --file FILE, or pipe a text in")
    return _decoded(sys.stdin.buffer.read(), "standard input")


def _decoded(content: bytes, source: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{source} is not UTF-8 ({error})") from error


def _bench(arguments: argparse.Namespace) -> int:
    from vox_serve.bench.command import bench  # imports tqdm

    return bench(arguments.url, read_flags(arguments, BenchConfig))


def _cluster(arguments: argparse.Namespace) -> int:
    from vox_serve.cluster.application import up

    return up(arguments.config, arguments.address, arguments.show)


def _plan(arguments: argparse.Namespace) -> int:
    from vox_serve.workers.threads import let_threads_sleep

    let_threads_sleep()
    from vox_serve.plan.command import plan  # imports torch

    config = read_flags(arguments, PlanConfig)
    engine = EngineConfig(model=arguments.model, device=arguments.device, dtype=arguments.dtype)
    if config.slots is not None:
        engine = attrs.evolve(engine, max_batch_size=config.slots)
    return plan(arguments.costs, config, engine)


def _models(_: argparse.Namespace) -> int:
    found = load_plugins()
    for checkpoint in found.checkpoints.values():
        print(f"{checkpoint.alias:<12} {checkpoint.summary}")
    for spec in found.models.values():
        print(f"{spec.name + ':':<12} {spec.summary}")
        for hub_id in spec.hub_ids:
            print(f"{'':<12} {hub_id}")
        print(f"{'':<12} or a directory that contains such a checkpoint")
    return 0


def _plugins(arguments: argparse.Namespace) -> int:
    infos = load_plugins().infos
    if arguments.json:
        print(json.dumps([attrs.asdict(info) for info in infos], indent=2))
        return 0
    for info in infos:
        offers = ", ".join([*info.models, *info.checkpoints, *info.postprocess])
        print(f"{info.name:<16} {info.version or '-':<10} {info.error or offers}")
    return 0


def _new_plugin(arguments: argparse.Namespace) -> int:
    target = new_plugin(arguments.name, arguments.directory)
    print(f"created {target}: run pip install -e {target}, then see its README.md")
    return 0


def _new_key(arguments: argparse.Namespace) -> int:
    key, line = new_key(arguments.name)
    print(key, file=sys.stderr)
    print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
