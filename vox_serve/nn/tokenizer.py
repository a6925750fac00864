"""Opens the tokenizer of a checkpoint.

Needs the package `tokenizers`, which a plugin that uses this declares.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Encoding, Tokenizer

from vox_serve.errors import CheckpointError
from vox_serve.hub import read_json


class CheckpointTokenizer:
    """A tokenizer that neither adds special tokens nor finds them in a text.

    Some tokenizers add a begin token by themselves, some do not; here the plugin adds it, with
    `special` and `id_of`.  A special token spelled out in a text is encoded as its characters,
    never as its id.

    Args:
        directory: contains `tokenizer.json` and `tokenizer_config.json`.

    Raises:
        CheckpointError: a file is missing or cannot be read.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / "tokenizer.json"
        stored = read_json(self.path)
        self._config = read_json(directory / "tokenizer_config.json")
        try:
            self._added = {token["content"]: int(token["id"]) for token in stored["added_tokens"]}
            # Added tokens are found in any text, whatever flags they have.
            self._tokenizer = Tokenizer.from_str(json.dumps(stored | {"added_tokens": []}))
        except Exception as error:  # tokenizers raises bare Exception
            raise CheckpointError(f"{self.path}: cannot be read ({error})") from error

    def encode(self, text: str) -> Encoding:
        """The tokens of a text: `ids`, and `offsets` into the text."""
        return self._tokenizer.encode(text, add_special_tokens=False)

    def id_of(self, token: str) -> int:
        """Raises CheckpointError if there is no such token."""
        number = self._added.get(token, self._tokenizer.token_to_id(token))
        if number is None:
            raise CheckpointError(f"{self.path}: does not contain the token {token!r}")
        return int(number)

    def find_special(self, key: str) -> int | None:
        """The id of a token that `tokenizer_config.json` names, such as `unk_token`, or None.

        Raises:
            CheckpointError: the tokenizer does not contain the token.
        """
        token = self._config.get(key)
        if not token:
            return None
        return self.id_of(str(token["content"] if isinstance(token, dict) else token))

    def special(self, key: str) -> int:
        """Like `find_special`, for a token that is required.

        Raises:
            CheckpointError: `tokenizer_config.json` does not name it, or there is no such token.
        """
        number = self.find_special(key)
        if number is None:
            raise CheckpointError(f"{self.path.with_name('tokenizer_config.json')}: has no {key}")
        return number
