#!/usr/bin/env python3
"""Text in, text out: `supra generate` with a tokenizer around it.

With --prompt, continues that text once. Without it, reads prompts line by line and keeps the
conversation.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from text_tokenizer import InputError, TextTokenizer

SUPRA = Path(__file__).resolve().parent.parent / "build" / "release" / "supra"


class Template:
    """How a turn of the conversation is wrapped: a continued text is not wrapped at all."""

    def __init__(self, tokenizer: TextTokenizer, name: str):
        self._tokenizer = tokenizer
        self._chatml = name == "chatml"
        self.stop = {tokenizer.eos()}
        if self._chatml:
            self._start = self._special("<|im_start|>")
            self._end = self._special("<|im_end|>")
            self.stop.add(self._end)

    def _special(self, token: str) -> int:
        found = self._tokenizer.token_id(token)
        if found is None:
            raise InputError(f"--template chatml needs {token}, not in {self._tokenizer.path}")
        return found

    def turn(self, text: str) -> list[int]:
        """The tokens of what the person says, up to where the model is to speak."""
        encode = self._tokenizer.encode
        if not self._chatml:
            return encode(text)
        said = [self._start, *encode("user\n" + text), self._end, *encode("\n")]
        return [*said, self._start, *encode("assistant\n")]

    def reply(self, tokens: list[int]) -> list[int]:
        """The tokens of what the model said, as they stand in the conversation."""
        return [*tokens, self._end, *self._tokenizer.encode("\n")] if self._chatml else tokens


def generate(args: argparse.Namespace, prompt: list[int], stop: set[int]) -> Iterator[int]:
    """The tokens that follow the prompt, as they come, up to one of `stop`."""
    command = [str(args.supra), "generate", str(args.model)]
    command += ["--prompt-tokens", ",".join(map(str, prompt)), "-n", str(args.n)]
    command += ["--temperature", str(args.temperature), "--top-p", str(args.top_p)]
    command += ["--seed", str(args.seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            token = int(line)
            if token in stop:
                process.terminate()
                return
            yield token
    if process.returncode:
        raise InputError(f"supra generate ended with exit code {process.returncode}")


def printed(tokenizer: TextTokenizer, tokens: Iterator[int]) -> list[int]:
    """Prints the text of the tokens while they come, and returns them. Bytes of a character that
    is not whole yet are held back."""
    seen: list[int] = []
    shown = ""
    for token in tokens:
        seen.append(token)
        text = tokenizer.decode(seen)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            print(text[len(shown) :], end="", flush=True)
            shown = text
    print(tokenizer.decode(seen)[len(shown) :], flush=True)
    return seen


def prompts(args: argparse.Namespace) -> Iterator[str]:
    if args.prompt is not None:
        yield args.prompt
        return
    if sys.stdin.isatty():
        print("Type a prompt and press Enter; Ctrl-D ends.")
    while True:
        try:
            text = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if text:
            yield text


def chat(args: argparse.Namespace) -> None:
    if not args.supra.is_file():
        raise InputError(f"there is no program {args.supra}: build it, or name it with --supra")
    tokenizer = TextTokenizer(args.tokenizer)
    template = Template(tokenizer, args.template)
    conversation: list[int] = []
    for text in prompts(args):
        turn = template.turn(text)
        if not turn:
            raise InputError("the prompt is empty")
        conversation += turn
        if args.template == "none":
            print(text, end="", flush=True)
        reply = printed(tokenizer, generate(args, conversation, template.stop))
        conversation += template.reply(reply)


def main() -> int:
    parser = argparse.ArgumentParser(description="Let a model continue text.")
    parser.add_argument("model", type=Path, metavar="MODEL.h5", help="a model file or a checkpoint")
    parser.add_argument(
        "--tokenizer", type=Path, required=True, help="tokenizer.json, a .model file, or a folder"
    )
    parser.add_argument("--prompt", help="continue this text once (default: ask for prompts)")
    parser.add_argument(
        "--template",
        choices=("none", "chatml"),
        default="none",
        help="wrap prompts as an instruct model expects (default: %(default)s)",
    )
    parser.add_argument(
        "-n", type=int, default=200, help="the most tokens a reply has (default: %(default)s)"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.7,
        help="0 takes the likeliest (default: %(default)s)",
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=0.9,
        help="sample among the likeliest tokens of this total probability (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the sampling (default: %(default)s)"
    )
    parser.add_argument(
        "--supra", type=Path, default=SUPRA, help="the program (default: %(default)s)"
    )
    args = parser.parse_args()
    try:
        chat(args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
