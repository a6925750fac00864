"""vox-serve new-plugin: a working plugin distribution to start from.

The templates are the listings of docs/writing-a-plugin.md; a test checks that the two agree.
"""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from vox_serve.errors import ConfigError

NAME = re.compile(r"[a-z][a-z0-9_]{0,30}")


def new_plugin(name: str, parent: Path) -> Path:
    """Write the distribution `vox-serve-NAME` into a new directory under `parent`.

    Raises:
        ConfigError: the name is not a plain lower-case identifier, or the directory exists.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r}: a plugin's name may contain only lower-case letters, digits and _"
        )
    target = parent / f"vox-serve-{name}"
    if target.exists():
        raise ConfigError(f"{target} already exists")
    for path, text in rendered(name).items():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        (target / path).write_text(text, encoding="utf-8")
    return target


def rendered(name: str) -> dict[str, str]:
    """Paths inside the distribution, and what is in the files."""
    written = {
        f"vox_serve_{name}/__init__.py": "",
        f"{name}-checkpoint/config.json": f'{{"model_type": "{name}"}}\n',
    }
    camel = "".join(part.capitalize() for part in name.split("_"))
    for template in (files("vox_serve") / "templates" / "plugin").iterdir():
        path = template.name.removesuffix(".txt").replace("__", "/").replace("NAME", name)
        text = template.read_text(encoding="utf-8")
        written[path] = text.replace("@name@", name).replace("@Name@", camel)
    return written
