"""Put SNAC beside an Orpheus checkpoint: `python -m vox_serve_orpheus.convert_snac CHECKPOINT`.

The hub has SNAC only as a pickle, which the server never reads.  This command reads it with
`weights_only=True`, which runs no code, and writes safetensors.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors.torch import save_file
from snac import SNAC

from vox_serve import CheckpointError
from vox_serve.hub import fetch, is_hub_id, read_config

HUB_ID = "hubertsiuzdak/snac_24khz"


def convert(source: str, directory: Path) -> Path:
    """Write `directory`/snac from a directory or hub repository with SNAC's pickle.

    Raises:
        CheckpointError: the source cannot be fetched or read.
    """
    config = read_config(source)
    pickled = fetch(source, ["config.json", "pytorch_model.bin"]) / "pytorch_model.bin"
    try:
        network = SNAC(**config)
        network.load_state_dict(torch.load(pickled, map_location="cpu", weights_only=True))
    except (OSError, EOFError, UnpicklingError, RuntimeError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{pickled}: cannot be read as SNAC: {reason}") from error
    tensors = network.state_dict()
    kept = {name: tensors[name] for name in tensors if not name.startswith("encoder.")}
    target = directory / "snac"
    target.mkdir(parents=True, exist_ok=True)
    save_file(kept, target / "model.safetensors")
    (target / "config.json").write_text(json.dumps(dict(config), indent=2), encoding="utf-8")
    return target


def find_directory(checkpoint: str) -> Path:
    """The directory of an Orpheus checkpoint; for a hub id, where the server downloads it.

    Raises:
        CheckpointError: there is no such directory, or it cannot be downloaded.
    """
    if not Path(checkpoint).is_dir() and not is_hub_id(checkpoint):
        raise CheckpointError(f"{checkpoint}: no such directory, and not a hub id")
    return fetch(checkpoint, ["config.json"])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("vox_serve_orpheus.convert_snac", description=__doc__)
    parser.add_argument("checkpoint", help="the Orpheus checkpoint: its directory or hub id")
    parser.add_argument("--source", default=HUB_ID, help="directory or hub id (%(default)s)")
    options = parser.parse_args(arguments)
    try:
        print(f"wrote {convert(options.source, find_directory(options.checkpoint))}")
    except CheckpointError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
