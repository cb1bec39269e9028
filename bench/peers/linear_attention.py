"""SUPRA's linear attention in plain PyTorch, and how long its forward and backward take.

With q and k rotated, o_t = sum over j <= t of lambda^(t-j) (q_t . k_j / sqrt(d)) v_j, then a
GroupNorm of each head (docs/mathematics.md, section 6). Chunked, as a PyTorch user writes it for
speed: batched products inside of all chunks at once, and the states at all chunk boundaries at once
through the matrix of decays between chunks, so that nothing loops over chunks in Python.

As a program it takes turns: for each number on standard input that many passes forward and
backward, and a line of JSON for each. Asked by compare_attention.py.
"""

import argparse
import json
import math
import sys
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Half-split rotary embedding of [..., T, d], with the tables' [T, d / 2]."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def rotary_tables(
    tokens: int, width: int, base: float, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    frequencies = base ** (-torch.arange(0, width, 2, dtype=torch.float64) / width) / scale
    angles = torch.arange(tokens, dtype=torch.float64)[:, None] * frequencies
    return angles.cos().float(), angles.sin().float()


def lightning_slopes(heads: int) -> Tensor:
    """Decay rates s_h: 2^(-8 (h + 1) / H); where H is no power of two those of the next lower one
    P, then every other of 2 P."""
    lower = 2 ** int(math.log2(heads))
    rates = [2 ** (-8 * (h + 1) / lower) for h in range(lower)]
    rates += [2 ** (-8 * (h + 1) / (2 * lower)) for h in range(0, 2 * (heads - lower), 2)]
    return torch.tensor(rates, dtype=torch.float64)


def chunk_for(tokens: int, width: int) -> int:
    """The fastest of 64, 128 and 256. The work on states grows with the square of their number."""
    return max(64 if tokens <= 2048 else 128, width)


class LinearAttention(nn.Module):
    def __init__(
        self, heads: int, width: int, tokens: int, chunk: int | None = None, eps: float = 1e-5
    ) -> None:
        super().__init__()
        c = self.chunk = min(chunk or chunk_for(tokens, width), tokens)
        self.eps, self.width = eps, width
        s, scale = lightning_slopes(heads)[:, None, None], width**-0.5
        row = torch.arange(c, dtype=torch.float64)
        distance = row[:, None] - row
        block = torch.arange(-(-tokens // c), dtype=torch.float64)
        apart = block[:, None] - block - 1
        within = torch.where(distance >= 0, torch.exp(-s * distance.clamp(min=0)), 0) * scale
        between = torch.where(apart >= 0, torch.exp(-s * c * apart.clamp(min=0)), 0)
        self.register_buffer("within", within.float()[:, None], persistent=False)  # [H, 1, c, c]
        self.register_buffer("between", between.float(), persistent=False)  # [H, n, n]
        from_start = torch.exp(-s * (row[:, None] + 1)).float()
        to_end = (torch.exp(-s * (c - 1 - row[:, None])) * scale).float()
        self.register_buffer("from_start", from_start[:, None], persistent=False)  # [H, 1, c, 1]
        self.register_buffer("to_end", to_end[:, None], persistent=False)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """q [B, T, H, d], k and v [B, T, Hkv, d]; the result [B, T, H, d]."""
        B, T, H, d = q.shape
        group, dtype = H // k.shape[2], q.dtype
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        q, k = rotate(q, cos, sin).to(dtype), rotate(k, cos, sin).to(dtype)
        if group > 1:
            k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
        pad = -T % self.chunk
        q, k, v = (F.pad(x, (0, 0, 0, pad)).reshape(B, H, -1, self.chunk, d) for x in (q, k, v))
        scores = (q @ k.transpose(-1, -2) * self.within).to(dtype)
        states = (k * self.to_end).to(dtype).transpose(-1, -2) @ v  # [B, H, n, d, d]
        before = (self.between @ states.float().flatten(3)).unflatten(3, (d, d)).to(dtype)
        out = scores @ v + (q * self.from_start).to(dtype) @ before
        out = out.reshape(B, H, -1, d)[:, :, :T].transpose(1, 2)
        return F.layer_norm(out.float(), (d,), eps=self.eps).to(dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("batch", "tokens", "heads", "kv-heads", "width", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--dtype", default="bfloat16", help="of q, k and v")
    parser.add_argument("--compile", action="store_true")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    dtype = getattr(torch, a.dtype)
    q, k, v, gradient = (
        torch.randn(a.batch, a.tokens, heads, a.width).to(dtype)
        for heads in (a.heads, a.kv_heads, a.kv_heads, a.heads)
    )
    q, k, v = (x.requires_grad_() for x in (q.relu(), k.relu(), v))
    cos, sin = rotary_tables(a.tokens, a.width, 1e4)
    mix = LinearAttention(a.heads, a.width, a.tokens)
    call = torch.compile(mix) if a.compile else mix
    for line in sys.stdin:
        for _ in range(int(line)):
            began = time.perf_counter()
            call(q, k, v, cos, sin).backward(gradient)
            print(json.dumps({"seconds": time.perf_counter() - began}), flush=True)
            q.grad = k.grad = v.grad = None


if __name__ == "__main__":
    main()
