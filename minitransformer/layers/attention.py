"""Causal grouped-query attention, in two ways that give the same numbers.

`reference_attention` writes every step out; `sdpa_attention` hands it to PyTorch's fused operator. Both
take q [B, H, T, D] and k, v [B, G, S, D], and let query t see the keys up to S - T + t: the mask is
aligned bottom right, because the last query is the newest token and sees everything.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from minitransformer.cache import KVCache
from minitransformer.config import ModelConfig
from minitransformer.layers.linear import Linear
from minitransformer.layers.norm import RMSNorm, rms_norm
from minitransformer.layers.ragged_attention import gathered_attention, ragged_attention
from minitransformer.layers.rotary import apply_rope
from minitransformer.paged_cache import PagedKVCache
from minitransformer.ragged import RaggedBatch

QUERY_BLOCK = 128  # queries that share a mask on a CPU


def causal_mask(T: int, S: int, window: int | None = None, device=None) -> torch.Tensor:
    """True where query t may see key s, [T, S]: s <= S - T + t, and no more than `window` back."""
    last_seen = torch.arange(S - T, S, device=device)[:, None]
    s = torch.arange(S, device=device)
    mask = s <= last_seen
    return mask if window is None else mask & (s > last_seen - window)


def reference_attention(q, k, v, window: int | None = None) -> torch.Tensor:
    """softmax(q k^T / sqrt(D)) v with the whole score matrix in memory. -> [B, H, T, D]"""
    B, H, T, D = q.shape
    G, S = k.shape[1], k.shape[2]
    q = q.reshape(B, G, H // G, T, D)  # query heads beside the key/value head they share
    scores = q @ k[:, :, None].transpose(-1, -2) / math.sqrt(D)  # [B, G, H/G, T, S]
    scores = scores.masked_fill(~causal_mask(T, S, window, q.device), -math.inf)
    weights = scores.float().softmax(dim=-1).to(v.dtype)
    return (weights @ v[:, :, None]).flatten(1, 2)


def sdpa_attention(q, k, v, window: int | None = None) -> torch.Tensor:
    """The same through `scaled_dot_product_attention`, without the score matrix. -> [B, H, T, D]"""
    B, H, T, D = q.shape
    G, S = k.shape[1], k.shape[2]
    if T == 1:
        # One query sees every key, so the H/G heads of a group can stand as H/G queries of one
        # head: no mask, and no copy of the keys for each query head.
        if window is not None:
            k, v = k[:, :, -window:], v[:, :, -window:]
        return F.scaled_dot_product_attention(q.reshape(B, G, H // G, D), k, v).reshape(B, H, T, D)
    if q.device.type == "cpu":
        return _in_blocks(q, k, v, window)
    if T == S and (window is None or window >= S):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=H != G)
    # is_causal would mask from the top left: with S > T, the newest query would see only T keys.
    mask = causal_mask(T, S, window, q.device)

    # CUDA's kernels that take a mask do not know enable_gqa. So rows and key/value heads become one
    # dimension, and the query heads of a group read the same keys through a stride of 0: no copy.
    def shared(x):  # [B, G, S, D] -> [B * G, H/G, S, D]
        return x.reshape(B * G, 1, S, D).expand(-1, H // G, -1, -1)

    q = q.reshape(B * G, H // G, T, D)
    return F.scaled_dot_product_attention(q, shared(k), shared(v), attn_mask=mask).reshape(B, H, T, D)


def _in_blocks(q, k, v, window: int | None) -> torch.Tensor:
    """Queries a block at a time, each with only the keys that it may see. -> [B, H, T, D]

    PyTorch's kernel for CPUs multiplies most of what the mask hides; nearly half of a prompt's square.
    """
    H, T, G, S = q.shape[1], q.shape[2], k.shape[1], k.shape[2]
    blocks = []
    for start in range(0, T, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, T)
        first = 0 if window is None else max(S - T + start - window + 1, 0)
        seen = slice(first, S - T + stop)
        mask = causal_mask(stop - start, seen.stop - first, window, q.device)
        out = F.scaled_dot_product_attention(
            q[:, :, start:stop], k[:, :, seen], v[:, :, seen], attn_mask=mask, enable_gqa=H != G
        )
        blocks.append(out.transpose(1, 2))  # the layout that the output projection reads
    return torch.cat(blocks, dim=1).transpose(1, 2)


ATTENTION = {"reference": reference_attention, "sdpa": sdpa_attention}


class Attention(nn.Module):
    """Project to heads, turn by position, write to the cache, attend, project back.

    attend, norm, rope and attend_rows are implementations of `reference_attention`, `rms_norm`,
    `apply_rope` and, for a group of a ragged batch, `gathered_attention`.
    """

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        attend: Callable,
        norm: Callable = rms_norm,
        rope: Callable = apply_rope,
        attend_rows: Callable = gathered_attention,
    ):
        super().__init__()
        self.config, self.layer = config, layer
        self.attend, self.rope, self.attend_rows = attend, rope, attend_rows
        size, qkv_bias = config.hidden_size, config.attention_bias
        self.q_proj = Linear(size, config.q_size, bias=qkv_bias)
        self.k_proj = Linear(size, config.kv_size, bias=qkv_bias)
        self.v_proj = Linear(size, config.kv_size, bias=qkv_bias)
        self.o_proj = Linear(config.q_size, size, bias=config.attention_out_bias)
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps, norm)
            self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps, norm)

    def forward(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, cache: KVCache | None
    ) -> torch.Tensor:  # [B, T, E] -> [B, T, E]
        q, k, v = self._project(x, cos, sin)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        out = self.attend(q, k, v, self.config.sliding_window)  # [B, H, T, D]
        return self.o_proj(out.transpose(1, 2).flatten(2))

    def forward_ragged(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, cache: PagedKVCache, batch: RaggedBatch
    ) -> torch.Tensor:  # [1, n, E] -> [1, n, E]
        q, k, v = (heads[0].transpose(0, 1) for heads in self._project(x, cos, sin))  # [n, H or G, D]
        cache.write(self.layer, k, v, batch.slots)
        out = ragged_attention(q, cache, self.layer, batch, self.attend_rows)  # [n, H, D]
        return self.o_proj(out.flatten(1))[None]

    def _project(self, x, cos, sin) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries [B, H, T, D], keys and values [B, G, T, D], turned by their positions."""
        q, k, v = self._heads(self.q_proj(x)), self._heads(self.k_proj(x)), self._heads(self.v_proj(x))
        if self.config.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # [B, n, T, D]
        return self.rope(q, cos, sin), self.rope(k, cos, sin), v

    def _heads(self, x: torch.Tensor) -> torch.Tensor:  # [B, T, n * D] -> [B, T, n, D]
        return x.unflatten(-1, (-1, self.config.head_dim))
