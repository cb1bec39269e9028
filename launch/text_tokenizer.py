"""A model's tokenizer, whichever library it is for: tokenizer.json or a sentencepiece .model."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

KNOWN_EOS = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "<|im_end|>")


class InputError(Exception):
    """Something a person can mend. The message names it and says how."""


class TextTokenizer:
    """Text to token ids and back. Adds no special tokens; their names in a text are plain text."""

    def __init__(self, path: Path):
        """`path` is a tokenizer.json, a sentencepiece .model, or a folder that has one of them."""
        self.path = find_tokenizer(path)
        try:
            self._load()
        except Exception as error:  # both libraries throw bare Exceptions and RuntimeErrors
            raise InputError(f"{self.path} cannot be read as a tokenizer: {error}") from error

    def _load(self) -> None:
        if self.path.suffix == ".json":
            from tokenizers import Tokenizer

            self._fast: Any = Tokenizer.from_file(str(self.path))
            self._fast.no_truncation()
            self._fast.no_padding()
            self._fast.encode_special_tokens = True
            self._pieces: Any = None
            self.vocabulary = max(self._fast.get_vocab(with_added_tokens=True).values()) + 1
        else:
            from sentencepiece import SentencePieceProcessor

            self._fast = None
            self._pieces = SentencePieceProcessor(model_file=str(self.path))
            self.vocabulary = self._pieces.get_piece_size()

    def encode(self, text: str) -> list[int]:
        if self._fast is None:
            return self._pieces.encode(text)
        return self._fast.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the tokens; special ones are left out."""
        if self._fast is None:
            return self._pieces.decode(list(ids))
        return self._fast.decode(ids, skip_special_tokens=True)

    def token_id(self, token: str) -> int | None:
        """The id of a token given by name, special tokens included."""
        if self._fast is not None:
            return self._fast.token_to_id(token)
        found = self._pieces.piece_to_id(token)
        return found if self._pieces.id_to_piece(found) == token else None

    def eos(self, override: str | None = None) -> int:
        """The id of the end-of-sequence token: `override` (an id or a name), else what the files
        beside the tokenizer say, else what the tokenizer itself knows."""
        if override is not None:
            found = int(override) if override.isdecimal() else self.token_id(override)
            if found is None or found >= self.vocabulary:
                raise InputError(f"--eos {override}: no such token in {self.path}")
            return found
        declared = self._declared_eos()
        if declared is not None:
            return declared
        if self._pieces is not None and self._pieces.eos_id() >= 0:
            return self._pieces.eos_id()
        for name in KNOWN_EOS:
            found = self.token_id(name)
            if found is not None:
                return found
        raise InputError(
            f"{self.path} does not say which token ends a document: give it with --eos"
        )

    def _declared_eos(self) -> int | None:
        token = read_json(self.path.parent / "tokenizer_config.json").get("eos_token")
        if isinstance(token, dict):
            token = token.get("content")
        if isinstance(token, str):
            return self.token_id(token)
        declared = read_json(self.path.parent / "config.json").get("eos_token_id")
        if isinstance(declared, list) and declared:
            declared = declared[0]
        return declared if isinstance(declared, int) and 0 <= declared < self.vocabulary else None

    def sha256(self) -> str:
        return hashlib.sha256(self.path.read_bytes()).hexdigest()


def find_tokenizer(path: Path) -> Path:
    if path.is_dir():
        found = [
            path / name for name in ("tokenizer.json", "tokenizer.model") if (path / name).is_file()
        ]
        if not found:
            raise InputError(f"{path} has neither tokenizer.json nor tokenizer.model")
        return found[0]
    if not path.is_file():
        raise InputError(f"there is no tokenizer {path}")
    if path.suffix not in (".json", ".model"):
        raise InputError(f"{path}: a tokenizer is a tokenizer.json or a sentencepiece .model file")
    return path


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty when there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} holds no JSON object")
    return value
