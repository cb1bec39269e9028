"""Trains in PyTorch: AdamW, clipped gradients, bf16 autocast over fp32 weights or fp32.

    python bench/peers/torch_step.py MODEL TOKENS --samples RUN/samples-0000.jsonl --compile

Takes the windows that a run of `supra` logged (run.log_samples), in its order and from the start
again when they are used up. Each line of standard input is a number of steps to train; for each
step a JSON line is printed. In between the process sleeps, so that it can take turns with another.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import h5py
import torch
from torch import Tensor, nn
from torch_model import load_model, losses


class Windows:
    """Inputs and targets [n, T] of the next n windows."""

    def __init__(self, tokens: Path, samples: Path, length: int) -> None:
        with h5py.File(tokens) as file:
            self.tokens = torch.from_numpy(file["tokens"][:].astype("i8"))
        lines = [json.loads(line) for line in samples.read_text().splitlines()]
        self.order = [window for line in lines for window in line["windows"]]
        self.length, self.taken = length, 0

    def next(self, count: int) -> tuple[Tensor, Tensor]:
        rows = []
        for i in range(self.taken, self.taken + count):
            first = self.order[i % len(self.order)] * self.length
            rows.append(self.tokens[first : first + self.length + 1])
        self.taken += count
        stacked = torch.stack(rows)
        return stacked[:, :-1], stacked[:, 1:]


class Trainer:
    def __init__(self, a: argparse.Namespace) -> None:
        self.model = load_model(a.model, a.sequence_length, a.recompute)
        self.windows = Windows(a.tokens, a.samples, a.sequence_length)
        if a.compile:  # a block once for all of them, and the head with its loss
            for layer in self.model.layers:
                layer.compile()
            self.head_losses = torch.compile(self.head_losses)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=a.learning_rate,
            betas=(0.9, 0.95),
            eps=1e-8,
            weight_decay=0.1,
            fused=True,
        )
        self.a = a
        self.steps = 0

    def losses(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.a.dtype == "mixed"):
            return self.head_losses(self.model(inputs), targets)

    def head_losses(self, x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return losses(self.model.lm_head(x), targets, self.a.z_loss)

    def step(self) -> dict:
        began, loss = time.perf_counter(), 0.0
        parts = self.a.global_batch // self.a.micro_batch
        self.optimizer.zero_grad(set_to_none=True)
        for _ in range(parts):
            nll, total = self.losses(*self.windows.next(self.a.micro_batch))
            (total / parts).backward()
            loss += nll.item() / parts
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        seconds = time.perf_counter() - began
        self.steps += 1
        return {"step": self.steps, "loss": loss, "grad_norm": norm.item(), "seconds": seconds}


def peak_memory() -> int:
    """Of this process: unlike getrusage's, which begins at its parent's."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("error: /proc/self/status has no VmHWM")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="model file or checkpoint")
    parser.add_argument("tokens", type=Path, help="token file")
    parser.add_argument("--samples", type=Path, required=True, help="samples-0000.jsonl of a run")
    parser.add_argument("--sequence-length", type=int, default=2048)
    parser.add_argument("--micro-batch", type=int, default=1)
    parser.add_argument("--global-batch", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--z-loss", type=float, default=1e-4)
    parser.add_argument("--dtype", choices=("mixed", "fp32"), default="mixed")
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    trainer = Trainer(a)
    for line in sys.stdin:
        for _ in range(int(line)):
            print(json.dumps(trainer.step() | {"peak_memory": peak_memory()}), flush=True)


if __name__ == "__main__":
    main()
