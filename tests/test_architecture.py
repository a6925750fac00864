"""docs/architecture.md draws the layers of the import contract."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_drawing_and_the_contract_agree():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = (c for c in contracts["contracts"] if c["type"] == "layers")
    page = (ROOT / "docs/architecture.md").read_text()
    section = page.partition("## Layers")[2].partition("\n## ")[0]
    drawing = re.search(r"```\n(.*?)\n```", section, re.DOTALL)
    assert drawing
    assert drawing[1].splitlines() == layers["layers"]
    assert layers["exhaustive"], "modules outside the contract are allowed"
