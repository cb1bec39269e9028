#!/usr/bin/env python3
"""SUPRA in plain PyTorch: what `supra score` computes, written to be read and checked against.

    supra_reference.py HF_DIR TOKENS.h5 --out SCORES.h5 [--recurrent]

HF_DIR has the `openlm` layout, which `supra export` writes of a model with linear attention. The
files are those of `supra score`: `tokens` [N, T] in, `logprob` [N, T-1] out. The two agree to what
fp32 leaves open when sums are taken in another order: 4 eps sqrt(n m) times the largest |logprob|,
with eps = 2^-24 and n = 9 layers + 2 sums one after the other, of m = max(dim, ffn, T) terms each.

Needs torch, safetensors and h5py. B sequences of T tokens; H heads of width d, and H / Hkv query
heads share a head of keys and values. Activations are [B, T, .].
"""

import argparse
import json
import math
import sys
from pathlib import Path

import h5py
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import group_norm, linear, log_softmax, relu, silu


def load_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of model.safetensors, or of the shards that its index lists."""
    index = folder / "model.safetensors.index.json"
    files = {"model.safetensors"}
    if index.exists():
        files = set(json.loads(index.read_text())["weight_map"].values())
    return {name: tensor for file in files for name, tensor in load_file(folder / file).items()}


def lightning_slopes(heads: int) -> list[float]:
    """2^(-8 (h+1) / H), as in ALiBi. Where H is no power of two: those of the next lower one, then
    every other one of twice it."""
    power = 1 << (heads.bit_length() - 1)
    slopes = [2 ** (-8 * (h + 1) / power) for h in range(power)]
    between = [2 ** (-8 * (h + 1) / (2 * power)) for h in range(0, 2 * power, 2)]
    return slopes + between[: heads - power]


def decay_slopes(config: dict) -> Tensor:
    """s_h, the same in every layer: what head h has read fades by exp(-s_h) a token."""
    heads = config["n_heads"]
    if not config.get("use_decay", False):
        slopes = [0.0] * heads
    elif config.get("use_retnet_slopes", False):
        slopes = [-math.log1p(-(2.0 ** (-5 - h))) for h in range(heads)]
    else:
        slopes = lightning_slopes(heads)
    return torch.tensor(slopes, dtype=torch.float64)


def inverse_frequencies(config: dict) -> Tensor:
    """Of the d/2 rotations of a head, in radians a token."""
    d = config["dim"] // config["n_heads"]
    exponents = torch.arange(0, d, 2, dtype=torch.float64) / d
    base, scale = config.get("rotary_base_frequency", 10000), config.get("rotary_scale", 1.0)
    frequencies = 1 / (scale * base**exponents)
    rounded = config.get("supra_rope_inv_freq", "fp32") == "bf16"
    return frequencies.bfloat16().double() if rounded else frequencies


def mix_parallel(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor) -> Tensor:
    """o_t = sum over j <= t of exp(-s (t - j)) (q_t . k_j) v_j, of [B, H, T, d], all t at once."""
    t = torch.arange(q.shape[2])
    age = (t[:, None] - t[None, :]).double()
    decay = torch.where(age >= 0, torch.exp(-slopes[:, None, None] * age.clamp(min=0)), 0.0)
    return (q @ k.transpose(-1, -2) * decay.to(q.dtype)) @ v


def mix_recurrent(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, state: Tensor) -> Tensor:
    """The same of the tokens that follow: S <- exp(-s) S + k_t^T v_t, o_t = q_t S. All that is
    remembered of what was read is the state, [B, H, d, d], which this updates."""
    outputs = []
    for t in range(q.shape[2]):
        state *= torch.exp(-slopes)[:, None, None].to(state.dtype)
        state += k[:, :, t, :, None] * v[:, :, t, None, :]
        outputs.append(q[:, :, t, None, :] @ state)
    return torch.cat(outputs, dim=2)


class Supra:
    """Token ids [B, T] become logits [B, T, V], all at once; or, with the states of `start`, which
    it reads on from and updates, as an RNN does."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self.config = json.loads((folder / "config.json").read_text())
        c = self.config
        if c.get("model_type") != "openlm" or c.get("attn_name") != "linear_attn":
            raise ValueError(f"{folder}/config.json is not that of an openlm with linear attention")
        self.heads, self.kv_heads, self.d = c["n_heads"], c["n_heads_kv"], c["qk_head_dim"]
        self.weights = {name: w.to(dtype) for name, w in load_weights(folder).items()}
        self.slopes, self.frequencies = decay_slopes(c), inverse_frequencies(c)

    def start(self, sequences: int) -> list[Tensor]:
        """The states of all layers before anything is read."""
        zeros = self.weights["model.norm.weight"].new_zeros(sequences, self.heads, self.d, self.d)
        return [zeros.clone() for _ in range(self.config["n_layers"])]

    def __call__(self, tokens: Tensor, states: list | None = None, position: int = 0) -> Tensor:
        w = self.weights
        angles = torch.outer(torch.arange(position, position + tokens.shape[1]), self.frequencies)
        x = w["model.tok_embeddings.weight"][tokens]
        for layer in range(self.config["n_layers"]):
            name = f"model.layers.{layer}."
            state = states[layer] if states else None
            h = self.norm(x, name + "attention_norm")
            x = x + self.attention(h, name + "attention.", angles, state)
            h = self.norm(x, name + "ffn_norm")
            gate, up = linear(h, w[name + "feed_forward.w12.weight"]).chunk(2, dim=-1)
            x = x + linear(silu(gate) * up, w[name + "feed_forward.w3.weight"])
        return linear(self.norm(x, "model.norm"), w["model.output.weight"])

    def norm(self, x: Tensor, name: str) -> Tensor:
        mean_square = x.square().mean(-1, keepdim=True)
        scale = torch.rsqrt(mean_square + self.config.get("norm_eps", 1e-5))
        return x * scale * self.weights[name + ".weight"]

    def feature_map(self, x: Tensor, name: str) -> Tensor:
        return relu(linear(x, self.weights[name + ".weight"], self.weights[name + ".bias"]))

    def attention(self, x: Tensor, name: str, angles: Tensor, state: Tensor | None) -> Tensor:
        width, kv_width = self.heads * self.d, self.kv_heads * self.d
        qkv = linear(x, self.weights[name + "in_proj.weight"])
        q, k, v = qkv.split([width, kv_width, kv_width], dim=-1)
        # Keys have a map of their own where they have fewer heads than queries.
        map_of_keys = "_totrain_embed" if kv_width == width else "_totrain_embed_kv"
        q = self.feature_map(q, name + "_totrain_embed")
        k, v = self.repeat(self.feature_map(k, name + map_of_keys)), self.repeat(v)
        if self.config.get("apply_qk_norm", False):
            q, k = self.norm(q, name + "_totrain_q_norm"), self.norm(k, name + "_totrain_k_norm")
        q, k = self.rotate(q, angles), self.rotate(k, angles) / math.sqrt(self.d)
        q, k, v = (self.split_heads(y).transpose(1, 2) for y in (q, k, v))
        if state is None:
            o = mix_parallel(q, k, v, self.slopes)
        else:
            o = mix_recurrent(q, k, v, self.slopes, state)
        # Each head of each token is normalised for itself: this replaces softmax's denominator.
        o = o.transpose(1, 2).reshape(-1, width)
        o = group_norm(o, self.heads, eps=1e-5).view(*x.shape[:2], width)
        return linear(o, self.weights[name + "out_proj.weight"])

    def split_heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], -1, self.d)

    def repeat(self, x: Tensor) -> Tensor:
        """Each head of keys or values once for every query head that reads it."""
        return self.split_heads(x).repeat_interleave(self.heads // self.kv_heads, dim=2).flatten(2)

    def rotate(self, x: Tensor, angles: Tensor) -> Tensor:
        """Rotary positions: element i of a head turns with element i + d/2."""
        cos, sin = (f(angles)[:, None, :].to(x.dtype) for f in (torch.cos, torch.sin))
        a, b = self.split_heads(x).chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(2)


@torch.inference_mode()
def score(model: Supra, tokens: Tensor, recurrent: bool) -> Tensor:
    """The log-probability of each token [B, T] but the first, given those before it."""
    if recurrent:
        states = model.start(len(tokens))
        columns = [model(tokens[:, t : t + 1], states, t) for t in range(tokens.shape[1] - 1)]
        logits = torch.cat(columns, dim=1)
    else:
        logits = model(tokens[:, :-1])
    return log_softmax(logits, dim=-1).gather(-1, tokens[:, 1:, None])[..., 0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", metavar="HF_DIR", type=Path)
    parser.add_argument("tokens", metavar="TOKENS.h5", type=Path)
    parser.add_argument("--out", type=Path, help="write `logprob` [N, T-1], float32, to this file")
    parser.add_argument("--recurrent", action="store_true", help="token by token, with a state")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    arguments = parser.parse_args()
    try:
        model = Supra(arguments.folder, getattr(torch, arguments.dtype))
        with h5py.File(arguments.tokens) as file:
            tokens = torch.from_numpy(file["tokens"][:].astype("int64"))
    except (OSError, KeyError, ValueError) as error:
        sys.exit(f"supra_reference.py: {error}")
    logprob = torch.cat([score(model, row, arguments.recurrent) for row in tokens.split(16)])
    loss = -logprob.double().mean().item()
    if arguments.out:
        with h5py.File(arguments.out, "w") as file:
            file["logprob"] = logprob.float().numpy()
            file.attrs.update(format="supra-scores 1", model=str(arguments.folder), mean_loss=loss)
    perplexity = math.exp(loss)
    print(f"mean loss {loss:.6f} nats/token, perplexity {perplexity:.3f}, {logprob.numel()} tokens")


if __name__ == "__main__":
    main()
