"""Causal attention of a ragged batch over a paged cache.

Rows of alike size are padded to one rectangle, their blocks are gathered from the cache, and PyTorch's
fused operator does the rest: a handful of tensor operations for each group, none for each row or token.
The price is a copy of what is read. Kernels that follow the block table themselves read it in place
(kernels/paged_attention.py, paged_prefill.py); layers/triton_ops.py has the group function that calls them.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from minitransformer.paged_cache import PagedKVCache
from minitransformer.ragged import RaggedBatch, RowGroup


def gathered_attention(q: torch.Tensor, cache: PagedKVCache, layer: int, group: RowGroup) -> torch.Tensor:
    """One group: q [P, T, H, D] over what this layer has cached -> [P, T, H, D]."""
    P, T, H, D = q.shape
    k, v = cache.read(layer, group.once("places", lambda: cache.places(group.block_table)))  # [P, G, S, D]
    G = k.shape[1]
    # The H/G heads that share keys stand as further queries of one head: no copy of keys for each.
    q = q.unflatten(2, (G, H // G)).permute(0, 2, 3, 1, 4).reshape(P, G, H // G * T, D)
    mask = group.once("mask", lambda: additive_mask(group, H // G, q.dtype))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out.reshape(P, G, H // G, T, D).permute(0, 3, 1, 2, 4).reshape(P, T, H, D)


def additive_mask(group: RowGroup, repeats: int, dtype: torch.dtype) -> torch.Tensor:
    """0 where a query may see a key, else -inf, [P, 1, repeats * T, S]; one row serves all where T is 1."""
    hidden = ~group.mask
    mask = torch.zeros_like(hidden, dtype=dtype).masked_fill_(hidden, -torch.inf)[:, None]
    return mask if mask.shape[2] == 1 else mask.repeat(1, 1, repeats, 1)


def ragged_attention(
    q: torch.Tensor,
    cache: PagedKVCache,
    layer: int,
    batch: RaggedBatch,
    attend_rows: Callable = gathered_attention,
) -> torch.Tensor:
    """q [n, H, D] of the batch's tokens over what this layer has cached -> [n, H, D].

    The cache holds the keys and values of the batch's own tokens already. `attend_rows` does one group.
    """
    parts = [attend_rows(q[g.tokens], cache, layer, g) for g in batch.groups]
    return torch.cat([part.flatten(0, 1) for part in parts])[batch.unpad]
