"""Macros for the site's pages that read flags, routes and example programs from the code.

The site's builder calls `define_env`; the pages call the macros by name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import attrs

from vox_serve.bench.config import BenchConfig
from vox_serve.config import EngineConfig, ServerConfig
from vox_serve.plugins import load_plugins
from vox_serve.server.app import create_app
from vox_serve.server.openapi.operation import ERRORS
from vox_serve.workers.engines import Engines

Json = dict[str, Any]
CONFIGS = {"model": EngineConfig, "server": ServerConfig, "bench": BenchConfig}


def define_env(env: Any) -> None:
    env.macro(flags)
    env.macro(routes)
    env.macro(program)


def table(head: str, rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table; `head` names its columns, separated by commas."""
    columns = head.split(",")
    cells = [columns, ["---"] * len(columns)]
    cells += [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells) + "\n"


def flags(group: str) -> str:
    """The flags of one configuration class, with their defaults."""
    return table("flag,default,meaning", (flag(field) for field in attrs.fields(CONFIGS[group])))


def flag(field: attrs.Attribute[Any]) -> tuple[str, str, str]:
    name = f"`--{field.name.replace('_', '-')}`"
    choices = field.metadata["choices"]
    among = f" (one of {', '.join(f'`{choice}`' for choice in choices)})" if choices else ""
    default = (
        " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
    )
    shown = "" if default in (None, "", False) else f"`{default}`"
    return name, shown, field.metadata["help"] + among


def program(name: str) -> str:
    """The code of one of examples/."""
    path = Path("examples", f"{name}.py")
    return f'```python title="{path}"\n{path.read_text()}```\n'


def openapi() -> Json:
    """The document that `GET /openapi.json` returns."""
    engines = Engines([EngineConfig()], ServerConfig(), load_plugins(), in_thread=True)
    found: Json = json.loads(create_app(engines).dependencies["document"].dependency().content)
    return found


def routes() -> str:
    """Each route with its fields and statuses, then the objects of bodies and answers."""
    document = openapi()
    parts = [document["info"]["description"]]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parts += [f"## {method.upper()} {path}", *route(operation)]
    parts.append("## Objects")
    for name, schema in document["components"]["schemas"].items():
        parts += [f"### {name}", schema.get("description", ""), fields(schema)]
    return "\n\n".join(filter(None, parts))


def route(operation: Json) -> list[str]:
    parts = [operation.get("description") or operation.get("summary", "")]
    taken = [
        (f"`{one['name']}`", one["in"], kind(one["schema"]), one.get("description", ""))
        for one in operation.get("parameters", ())
    ]
    if taken:
        parts.append(table("parameter,in,type,meaning", taken))
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        parts.append(f"Body, `{media}`: {kind(content['schema'])}")
    answers = []
    for status, answer in operation["responses"].items():
        if "$ref" in answer:
            answers.append((status, ERRORS[int(status)], "[Error](#error)"))
            continue
        bodies = [
            f"`{media}`{': ' + kind(body['schema']) if '$ref' in body.get('schema', {}) else ''}"
            for media, body in answer.get("content", {}).items()
        ]
        answers.append((status, answer["description"], ", ".join(bodies)))
    parts.append(table("status,meaning,body", answers))
    return parts


def fields(schema: Json) -> str:
    required = schema.get("required", ())
    rows = [
        (
            f"`{name}`",
            kind(field),
            "required"
            if name in required
            else value(field["default"])
            if "default" in field
            else "",
            field.get("description", ""),
        )
        for name, field in schema.get("properties", {}).items()
    ]
    return table("field,type,default,meaning", rows) if rows else ""


def value(found: object) -> str:
    return "" if found is None else f"`{json.dumps(found)}`"


BOUNDS = {"minimum": "from", "maximum": "to", "exclusiveMinimum": "above", "maxLength": "up to"}


def kind(schema: Json) -> str:
    """A schema in words: its type and bounds."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(kind(one) for one in schema["anyOf"] if one != {"type": "null"})
    if "enum" in schema:
        return ", ".join(value(one) for one in schema["enum"])
    if "const" in schema:
        return value(schema["const"])
    if schema.get("type") == "array":
        return f"list of {kind(schema.get('items', {})) or 'anything'}"
    bounds = [f"{word} {schema[name]:g}" for name, word in BOUNDS.items() if name in schema]
    return " ".join([schema.get("format") or schema.get("type", ""), *bounds])
