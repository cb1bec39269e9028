"""The SUPRA model in plain PyTorch, and its softmax base by transformers, with weights of `supra`.

Parameters have the names that Hugging Face gives them, as in a model file or checkpoint.
"""

import json
from pathlib import Path

import h5py
import torch
import torch.nn.functional as F
from linear_attention import LinearAttention, rotary_tables
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Attention(nn.Module):
    def __init__(self, config: dict, tokens: int) -> None:
        super().__init__()
        D, H, G, d = (config[key] for key in ("width", "heads", "kv_heads", "head_width"))
        self.width = d
        self.q_proj = nn.Linear(D, H * d, bias=False)
        self.k_proj = nn.Linear(D, G * d, bias=False)
        self.v_proj = nn.Linear(D, G * d, bias=False)
        self.o_proj = nn.Linear(H * d, D, bias=False)
        self.feature_map = nn.Linear(H * d, H * d)
        self.feature_map_kv = self.feature_map if G == H else nn.Linear(G * d, G * d)
        self.mix = LinearAttention(H, d, tokens, eps=config["linear"]["eps"])

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q = F.relu(self.feature_map(self.q_proj(x)))
        k = F.relu(self.feature_map_kv(self.k_proj(x)))
        q, k, v = (y.unflatten(-1, (-1, self.width)) for y in (q, k, self.v_proj(x)))
        return self.o_proj(self.mix(q, k, v, cos, sin).flatten(2))


class MLP(nn.Module):
    def __init__(self, width: int, ffn: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, ffn, bias=False)
        self.up_proj = nn.Linear(width, ffn, bias=False)
        self.down_proj = nn.Linear(ffn, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class RMSNorm(nn.Module):
    """As Llama has it: fp32 inside, the result in x's dtype, which nn.RMSNorm wants weights in."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        return (self.weight * y.to(x.dtype)).to(x.dtype)


class Block(nn.Module):
    def __init__(self, config: dict, tokens: int) -> None:
        super().__init__()
        width, eps = config["width"], config["norm_eps"]
        self.input_layernorm = RMSNorm(width, eps)
        self.self_attn = Attention(config, tokens)
        self.post_attention_layernorm = RMSNorm(width, eps)
        self.mlp = MLP(width, config["ffn"])

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class SupraModel(nn.Module):
    """Gives what the head, `lm_head`, makes logits of."""

    def __init__(self, config: dict, tokens: int, recompute: bool) -> None:
        super().__init__()
        self.recompute = recompute
        self.embed_tokens = nn.Embedding(config["vocabulary"], config["width"])
        self.layers = nn.ModuleList(Block(config, tokens) for _ in range(config["layers"]))
        self.norm = RMSNorm(config["width"], config["norm_eps"])
        self.lm_head = nn.Linear(config["width"], config["vocabulary"], bias=False)
        if config["tied_head"]:
            self.lm_head.weight = self.embed_tokens.weight
        rope = config["rope"]
        cos, sin = rotary_tables(tokens, config["head_width"], rope["base"], rope["scale"])
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        x = self.embed_tokens(inputs)
        if torch.is_autocast_enabled("cpu"):
            x = x.bfloat16()  # else the residual stream stays fp32
        for block in self.layers:
            if self.recompute:
                x = checkpoint(block, x, self.cos, self.sin, use_reentrant=False)
            else:
                x = block(x, self.cos, self.sin)
        return self.norm(x)


class TransformersModel(nn.Module):
    """The softmax base by Hugging Face transformers, attention by scaled_dot_product_attention."""

    def __init__(self, config: dict, recompute: bool) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        super().__init__()
        rope = config["rope"]
        if rope["scale"] != 1 or rope["llama3_factor"] or config["window"]:
            raise SystemExit("error: rotary scaling and windows are not told to transformers")
        self.llama = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=config["vocabulary"],
                hidden_size=config["width"],
                intermediate_size=config["ffn"],
                num_hidden_layers=config["layers"],
                num_attention_heads=config["heads"],
                num_key_value_heads=config["kv_heads"],
                head_dim=config["head_width"],
                rms_norm_eps=config["norm_eps"],
                rope_parameters={"rope_type": "default", "rope_theta": rope["base"]},
                tie_word_embeddings=config["tied_head"],
                attn_implementation="sdpa",
            )
        ).float()
        if recompute:
            self.llama.gradient_checkpointing_enable({"use_reentrant": False})
        self.layers, self.lm_head = self.llama.model.layers, self.llama.lm_head

    def forward(self, inputs: Tensor) -> Tensor:
        return self.llama.model(input_ids=inputs, use_cache=False).last_hidden_state


def losses(logits: Tensor, targets: Tensor, z_loss: float) -> tuple[Tensor, Tensor]:
    """The mean negative log-likelihood, and with the z-loss what is differentiated; fp32 inside."""
    logits = logits.flatten(0, 1).float()
    lse = logits.logsumexp(-1)
    nll = (lse - logits.gather(1, targets.flatten()[:, None])[:, 0]).mean()
    return nll, nll + z_loss * lse.square().mean()


def load_model(path: Path, tokens: int, recompute: bool) -> nn.Module:
    """Of a model file or checkpoint: ours when its attention is linear, else transformers'."""
    with h5py.File(path / "index.h5" if path.is_dir() else path) as file:
        config = json.loads(file.attrs["config"])
        stored = file["model"]
        if config["attention"] == "linear":
            model = SupraModel(config, tokens, recompute)
            names = {name.removeprefix("model."): name for name in stored}
        else:
            model = TransformersModel(config, recompute)
            names = {f"llama.{name}": name for name in stored}
        parameters = dict(model.named_parameters())
        if differing := parameters.keys() ^ names.keys():
            raise SystemExit(f"error: {path} and the model differ in {sorted(differing)}")
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(torch.from_numpy(stored[names[name]].astype("f4")[...]))
    return model
