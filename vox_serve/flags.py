"""Turns configuration classes into command-line flags, one for each field.

A flag has both spellings, `--top-p` and `--top_p`, and the field's default.
"""

from __future__ import annotations

import argparse
from collections.abc import Container
from types import UnionType
from typing import Any, NoReturn, TypeVar, get_args, get_origin, get_type_hints

import attrs

C = TypeVar("C")


class Parser(argparse.ArgumentParser):
    """Rejects bad values with one line, and accepts no abbreviations."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **settings})

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


def add_flags(
    parser: argparse._ActionsContainer, config: type[Any], repeated: Container[str] = ()
) -> None:
    """Add a flag for every field of an attrs class made with `config.setting`.

    Args:
        repeated: fields whose flag may be given more than once; the caller splits the list.
    """
    hints = get_type_hints(config)
    for field in attrs.fields(config):
        names = dict.fromkeys((f"--{field.name.replace('_', '-')}", f"--{field.name}"))
        several = isinstance(field.default, tuple)
        kind = _plain_type(hints[field.name])
        numbers = several and kind is not str  # one flag may take several: --rate 1 2
        action = "append" if several or field.name in repeated else "store"
        shown = "" if field.default is None or several else f" (default: {field.default})"
        text = field.metadata["help"] + shown
        if kind is bool:
            parser.add_argument(
                *names, dest=field.name, action="store_true", default=None, help=text
            )
            continue
        parser.add_argument(
            *names,
            dest=field.name,
            type=kind,
            action="extend" if numbers else action,
            nargs="+" if numbers else None,
            choices=field.metadata["choices"],
            default=None,
            metavar=field.name.upper() if field.metadata["choices"] is None else None,
            help=text,
        )


def read_flags(arguments: argparse.Namespace, config: type[C]) -> C:
    """Build the attrs class from what was given.  Raises ConfigError or InvalidRequest."""
    given: dict[str, Any] = {}
    for field in attrs.fields(config):  # type: ignore[arg-type]  # C is an attrs class
        value = getattr(arguments, field.name)
        if value is not None:
            given[field.name] = tuple(value) if isinstance(value, list) else value
    return config(**given)


def _plain_type(hint: Any) -> Any:
    """`float | None` and `tuple[float, ...]` to `float`."""
    if isinstance(hint, UnionType) or get_origin(hint) is tuple:
        return next(kind for kind in get_args(hint) if kind is not type(None))
    return hint
