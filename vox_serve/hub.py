"""Finds the directory of a checkpoint by its name; imports no tensor library.

A source is a local directory, a Hugging Face hub id (`org/name`) or a folder in such a
repository (`org/name/folder`).  Every failure raises a one-line `CheckpointError` that says what
to do.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vox_serve.errors import CheckpointError
from vox_serve.sizes import check_sizes

HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)((?:/[A-Za-z0-9][\w.-]*)*)")
log = logging.getLogger("vox_serve.hub")


def is_hub_id(source: str) -> bool:
    return HUB_ID.fullmatch(source) is not None


def split(source: str) -> tuple[str, str]:
    """A hub id and the folder that it names, which may be empty: `org/name`, `a/folder`."""
    found = HUB_ID.fullmatch(source)
    return (found[1], found[2].removeprefix("/")) if found else (source, "")


def read_config(source: str) -> Mapping[str, Any]:
    """The `config.json` of a directory or of a hub repository.

    Raises:
        CheckpointError: it is not there, cannot be fetched or is not a JSON object.
    """
    if Path(source).is_dir():
        path = Path(source) / "config.json"
        if not path.is_file():
            raise CheckpointError(f"{source}: no config.json in this directory")
    else:
        path = _from_hub(source, _download_config)
    return read_json(path)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a checkpoint, its sizes checked (`vox_serve.sizes`).

    Raises:
        CheckpointError: it is missing or is not a JSON object, or a size is out of range.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: this file is missing; download the checkpoint again")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    check_sizes(path, found)
    return found


def fetch(source: str, patterns: Sequence[str]) -> Path:
    """The directory of a checkpoint, downloaded first if `source` is a hub id.

    Args:
        source: a directory, taken as it is, or a hub id.
        patterns: glob patterns of the files to download.

    Raises:
        CheckpointError: it is gated, the network is down or the name is wrong; says what to do.
    """
    if Path(source).is_dir():
        return Path(source)

    def download(repo: str) -> str:
        from huggingface_hub import snapshot_download

        wanted = [f"{folder}/{pattern}" if folder else pattern for pattern in patterns]
        return snapshot_download(repo, allow_patterns=wanted)

    repo, folder = split(source)
    return _from_hub(repo, download) / folder


def _download_config(source: str) -> str:
    from huggingface_hub import hf_hub_download

    repo, folder = split(source)
    return hf_hub_download(repo, "config.json", subfolder=folder or None)


def _from_hub(repo: str, download: Callable[[str], str]) -> Path:
    from huggingface_hub import errors

    log.info("looking for %s on the Hugging Face hub", repo)
    page = f"https://huggingface.co/{split(repo)[0]}"
    try:
        return Path(download(repo))
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{repo} is gated: accept its licence at {page}, then run `huggingface-cli login` "
            "or set HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{repo} is not on the hub, or is private: check the name at {page}; "
            "for a private repository, set HF_TOKEN"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{repo} is not in the local cache and the hub cannot be reached: check the network, "
            "or pass the directory of a downloaded checkpoint"
        ) from error
    except errors.EntryNotFoundError as error:
        raise CheckpointError(f"{repo} has no config.json: it is not a model repository") from error
    except (errors.HfHubHTTPError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{repo} cannot be downloaded: {reason}") from error
