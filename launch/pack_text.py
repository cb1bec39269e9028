#!/usr/bin/env python3
"""Turns text into a token file: HDF5 with one long row of token ids, documents joined by EOS.

Inputs are plain text (.txt: a file is a document) and JSON lines (.jsonl, .jsonl.gz, .jsonl.zst: a
line is one), read in the order given. Many processes tokenize, but the file does not depend on how
many. Memory does not grow with the input.
"""

import argparse
import contextlib
import gzip
import io
import json
import os
import re
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import BinaryIO, NamedTuple, TextIO

import h5py
import numpy as np
import zstandard
from text_tokenizer import InputError, TextTokenizer
from tqdm import tqdm

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".jsonl.zst")
BATCH = 1 << 18  # characters handed to a worker at a time: about 0.1 s of work
CHUNK = 1 << 16  # tokens in a chunk of the dataset


class Piece(NamedTuple):
    """A document, or a part of one too long to be handed over whole."""

    text: str
    ends_document: bool


class Batch(NamedTuple):
    tokens: np.ndarray
    ends: list[int]  # of documents: positions just behind their EOS


class Progress:
    """How many input bytes have been read: a bar on a terminal, else a line every ten seconds."""

    def __init__(self, total: int):
        self._bar = tqdm(total=total, unit="B", unit_scale=True, disable=not sys.stderr.isatty())
        self._total, self._done, self._next_line = total, 0, time.monotonic() + 10

    def at(self, done: int) -> None:
        self._bar.update(done - self._done)
        self._done = done
        if self._bar.disable and time.monotonic() > self._next_line:
            self._next_line += 10
            print(
                f"read {done / 1e6:.0f} of {self._total / 1e6:.0f} MB", file=sys.stderr, flush=True
            )

    def close(self) -> None:
        self._bar.close()


def check_inputs(paths: list[Path]) -> None:
    for path in paths:
        if not path.is_file():
            raise InputError(f"there is no file {path}")
        if not path.name.endswith(SUFFIXES):
            raise InputError(f"{path}: unknown kind of file; known are {', '.join(SUFFIXES)}")


def zstd_blocks(raw: BinaryIO) -> Iterator[bytes]:
    """Decompresses frame after frame. zstandard's own reader takes a truncated file for whole."""
    data = b""
    while data := data or raw.read(1 << 14):
        frame = zstandard.ZstdDecompressor().decompressobj()
        while not frame.eof:
            if not data and not (data := raw.read(1 << 14)):
                raise EOFError("it ends within a frame")
            yield frame.decompress(data)
            data = frame.unused_data


class BlockReader(io.RawIOBase):
    """A stream over blocks of bytes."""

    def __init__(self, blocks: Iterator[bytes]):
        self._blocks = blocks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        while not self._rest:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._rest = memoryview(block)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


@contextlib.contextmanager
def text_of(path: Path, raw: BinaryIO) -> Iterator[TextIO]:
    """The decompressed text of an open input file. What is wrong inside becomes an InputError."""
    stream: BinaryIO = raw
    if path.suffix == ".gz":
        stream = gzip.GzipFile(fileobj=raw)
    elif path.suffix == ".zst":
        stream = io.BufferedReader(BlockReader(zstd_blocks(raw)))
    try:
        yield io.TextIOWrapper(stream, encoding="utf-8", newline="\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error}") from error
    except (EOFError, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise InputError(f"{path} is truncated or corrupt: {error}") from error


def documents_of_lines(path: Path, lines: Iterable[str], key: str) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if line.isspace():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}, line {number}: not JSON: {error}") from error
        if not isinstance(record, dict):
            raise InputError(f"{path}, line {number}: not a JSON object")
        if key not in record:
            raise InputError(
                f'{path}, line {number}: no "{key}" among {sorted(record)}; see --text-key'
            )
        if not isinstance(record[key], str):
            raise InputError(f'{path}, line {number}: "{key}" is not a string')
        yield record[key]


def pieces_of_text(stream: TextIO, space: str) -> Iterator[Piece]:
    """Cuts a long text where tokenizers do not join what stands on both sides: at single spaces, or
    else after line ends. A piece cut at a space begins with `space`."""
    text = ""
    while block := stream.read(BATCH):
        text += block
        tail = len(text) - min(len(text) // 2, 1 << 14)
        for pattern, start in ((r"(?<=\S) (?=\S)", space), (r"(?<=\n)(?=\S)", "")):
            breaks = list(re.compile(pattern).finditer(text, tail))
            if breaks:
                yield Piece(text[: breaks[-1].start()], False)
                text = start + text[breaks[-1].end() :]
                break
    yield Piece(text, True)


def read_pieces(paths: list[Path], key: str, space: str, progress: Progress) -> Iterator[Piece]:
    finished = 0
    for path in paths:
        with path.open("rb") as raw, text_of(path, raw) as stream:
            if path.suffix == ".txt":
                pieces = pieces_of_text(stream, space)
            else:
                pieces = (
                    Piece(document, True) for document in documents_of_lines(path, stream, key)
                )
            for piece in pieces:
                yield piece
                progress.at(finished + raw.tell())
        finished += path.stat().st_size
        progress.at(finished)


def batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    characters = 0
    for piece in pieces:
        if piece.text or not piece.ends_document:
            batch.append(piece)
            characters += len(piece.text)
        if characters >= BATCH:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


class Worker:
    """What a process of the pool keeps."""

    tokenizer: TextTokenizer
    eos: int
    dtype: np.dtype

    @classmethod
    def start(cls, path: Path, eos: int) -> None:
        cls.tokenizer = TextTokenizer(path)
        cls.eos = eos
        cls.dtype = token_dtype(cls.tokenizer)

    @classmethod
    def encode(cls, pieces: list[Piece]) -> Batch:
        tokens: list[int] = []
        ends: list[int] = []
        for piece in pieces:
            tokens += cls.tokenizer.encode(piece.text)
            if piece.ends_document:
                tokens.append(cls.eos)
                ends.append(len(tokens))
        return Batch(np.array(tokens, dtype=cls.dtype), ends)


def token_dtype(tokenizer: TextTokenizer) -> np.dtype:
    return np.dtype(np.uint16 if tokenizer.vocabulary <= 1 << 16 else np.uint32)


def encode_in_order(
    pool: ProcessPoolExecutor, work: Iterable[list[Piece]], ahead: int
) -> Iterator[Batch]:
    """The results in the order of the work, of which at most `ahead` batches are under way."""
    pending = deque()
    try:
        for batch in work:
            pending.append(pool.submit(Worker.encode, batch))
            if len(pending) >= ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def leading_space(tokenizer: TextTokenizer) -> str:
    """What a piece cut at a space begins with: nothing where the tokenizer itself puts a space
    before a text."""
    apart = tokenizer.encode("word") + tokenizer.encode("word")
    return "" if tokenizer.encode("word word") == apart else " "


class TokenFile:
    """The HDF5 file, written aside and renamed when it is whole."""

    def __init__(self, path: Path, dtype: np.dtype, sequences: tuple[int, int] | None):
        self._path, self._aside = path, path.with_name(path.name + ".partial")
        try:
            self._file = h5py.File(self._aside, "w", libver=("v110", "v110"))
        except OSError as error:
            raise InputError(f"cannot write {self._aside}: {error}") from error
        self._sequences = sequences
        self._limit = sequences[0] * sequences[1] if sequences else None
        self._row = self._file.create_dataset(
            "tokens", (0,), dtype, maxshape=(None,), chunks=(CHUNK,)
        )
        self.tokens, self.documents = 0, 0

    def append(self, batch: Batch) -> bool:
        """Returns whether more tokens are wanted."""
        count = len(batch.tokens)
        if self._limit is not None:
            count = min(count, self._limit - self.tokens)
        self._row.resize((self.tokens + count,))
        self._row[self.tokens :] = batch.tokens[:count]
        self.tokens += count
        self.documents += sum(end <= count for end in batch.ends)
        return self.tokens != self._limit

    def finish(self, attributes: dict[str, str | int]) -> None:
        if self._sequences is not None:
            self._fold_into_sequences(*self._sequences)
        attributes |= {
            "format": "supra-tokens 1",
            "documents": self.documents,
            "tokens": self.tokens,
        }
        for name, value in attributes.items():
            self._file.attrs[name] = np.int64(value) if isinstance(value, int) else value
        self._file.close()
        self._aside.replace(self._path)

    def _fold_into_sequences(self, count: int, length: int) -> None:
        if self.tokens < count * length:
            needed = f"--sequences {count},{length} needs {count * length} tokens"
            raise InputError(f"{needed}; the inputs have {self.tokens}")
        rows = self._row[:].reshape(count, length)
        del self._file["tokens"]
        self._file["tokens"] = rows

    def abandon(self) -> None:
        self._file.close()
        self._aside.unlink(missing_ok=True)


def pack(args: argparse.Namespace) -> TokenFile:
    check_inputs(args.inputs)
    tokenizer = TextTokenizer(args.tokenizer)
    eos = tokenizer.eos(args.eos)
    progress = Progress(sum(path.stat().st_size for path in args.inputs))
    out = TokenFile(args.out, token_dtype(tokenizer), args.sequences)
    try:
        with ProcessPoolExecutor(
            args.workers, initializer=Worker.start, initargs=(tokenizer.path, eos)
        ) as pool:
            pieces = read_pieces(args.inputs, args.text_key, leading_space(tokenizer), progress)
            results = encode_in_order(pool, batches(pieces), ahead=4 * args.workers)
            with contextlib.closing(results):
                for batch in results:
                    if not out.append(batch):
                        break
        if out.tokens == 0:
            raise InputError("the inputs hold no text")
        out.finish(
            {
                "tokenizer": tokenizer.path.name,
                "tokenizer_sha256": tokenizer.sha256(),
                "vocabulary": tokenizer.vocabulary,
                "eos": eos,
            }
        )
    except BaseException:
        out.abandon()
        raise
    finally:
        progress.close()
    return out


def sequences(text: str) -> tuple[int, int]:
    count, _, length = text.partition(",")
    if not (count.isdecimal() and length.isdecimal() and int(count) and int(length) > 1):
        raise argparse.ArgumentTypeError("two numbers are wanted, N,T, with N >= 1 and T >= 2")
    return int(count), int(length)


def workers(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError("a whole number from 1 up is wanted")
    return int(text)


def main() -> int:
    parser = argparse.ArgumentParser(description="Turn text into a token file (HDF5).")
    parser.add_argument("inputs", type=Path, nargs="+", metavar="INPUT", help=", ".join(SUFFIXES))
    parser.add_argument(
        "--tokenizer",
        type=Path,
        required=True,
        help="tokenizer.json, a sentencepiece .model, or a folder with one",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="TOKENS.h5", help="the file to write"
    )
    parser.add_argument(
        "--text-key",
        default="text",
        help="the key of the text in JSON lines (default: %(default)s)",
    )
    parser.add_argument(
        "--eos", help="the token that ends a document, by name or id (default: the tokenizer's)"
    )
    parser.add_argument(
        "--sequences",
        type=sequences,
        metavar="N,T",
        help="write the first N*T tokens as N rows of T, as `supra score` reads them",
    )
    parser.add_argument(
        "--workers",
        type=workers,
        default=os.cpu_count(),
        help="processes (default: one a processor, %(default)s)",
    )
    args = parser.parse_args()
    try:
        out = pack(args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{args.out}: {out.tokens} tokens, {out.documents} documents")
    return 0


if __name__ == "__main__":
    sys.exit(main())
