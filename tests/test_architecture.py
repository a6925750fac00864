"""docs/architecture.md draws the layers that the import contract holds."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_drawing_and_the_contract_are_one():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = (c for c in contracts["contracts"] if c["type"] == "layers")
    page = (ROOT / "docs/architecture.md").read_text()
    section = page.partition("## Layers")[2].partition("\n## ")[0]
    drawing = re.search(r"```\n(.*?)\n```", section, re.DOTALL)
    assert drawing
    assert drawing[1].splitlines() == layers["layers"]
    assert layers["exhaustive"], "a module outside the drawing must be an error"
