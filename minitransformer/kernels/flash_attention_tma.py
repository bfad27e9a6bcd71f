"""FlashAttention with tiles that the tensor memory accelerator fetches, for GPUs from Hopper on.

The algorithm is that of flash_attention.py, program by program. What differs is who fetches a tile: here one
thread names its coordinates and a copy engine does the rest (tma.py). Registers that held addresses are free,
and with a small block of queries (64 rows, four warps) two programs find room on each SM: while one computes
exponentials, the other may keep the tensor cores busy. FlashAttention-3 (Shah et al. 2024, arXiv 2407.08608)
arranges that overlap inside one program; here it is left to chance.
"""

import torch
import triton
import triton.language as tl

from minitransformer.kernels.attention_tiles import padded_head
from minitransformer.kernels.online_softmax import DOT_PRECISION, finish, new_state, online_softmax_step
from minitransformer.kernels.runtime import dot_operand
from minitransformer.kernels.tma import descriptor
from minitransformer.kernels.tuning import Config


@triton.jit
def attend_tiles(
    m,  # state of the online softmax, see online_softmax.py
    l,
    acc,
    q,  # [BLOCK_T, BLOCK_D]
    k_desc,  # of k [B, G, S, D]
    v_desc,  # of v [B, G, S, D]
    b,  # which sequence
    g,  # which key/value head
    first,  # keys from here on
    end,  # up to here
    S,  # keys that exist
    last_seen,  # [BLOCK_T]: the last key that each query may see; looked at only if CAUSAL and MASKED
    scale_log2,
    MASKED: tl.constexpr,  # whether some query must not see some key of these blocks
    CAUSAL: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The state after the blocks of keys from `first` to `end`."""
    for start in range(first, end, BLOCK_S):
        k = dot_operand(k_desc.load([b, g, start, 0]).reshape(BLOCK_S, BLOCK_D))
        scores = tl.dot(q, tl.trans(k), input_precision=DOT_PRECISION)  # [BLOCK_T, BLOCK_S]
        if MASKED:
            s = start + tl.arange(0, BLOCK_S)
            seen = (s < S)[None, :]
            if CAUSAL:
                seen = seen & (s[None, :] <= last_seen[:, None])
            scores = tl.where(seen, scores, -float("inf"))
        v = dot_operand(v_desc.load([b, g, start, 0]).reshape(BLOCK_S, BLOCK_D))
        m, l, acc = online_softmax_step(m, l, acc, scores, v, scale_log2)
    return m, l, acc


@triton.jit
def flash_attention_tma_kernel(
    q_desc,  # of q [B, H, T, D], in tiles [1, 1, BLOCK_T, BLOCK_D]
    k_desc,  # of k [B, G, S, D], in tiles [1, 1, BLOCK_S, BLOCK_D]
    v_desc,  # of v [B, G, S, D], in the same
    out_desc,  # of the result [B, H, T, D], in tiles like q's, to write
    H,  # query heads
    GROUP,  # query heads that share a key/value head, H / G
    T,  # queries
    S,  # keys
    scale_log2,  # softmax scale times log2(e)
    CAUSAL: tl.constexpr,  # query t sees keys up to S - T + t; else all
    BLOCK_T: tl.constexpr,  # queries of a program
    BLOCK_S: tl.constexpr,  # keys that it looks at in one step
    BLOCK_D: tl.constexpr,  # a power of two, at least D: what a tile has beyond D is zeros
):
    """One program: one head of one batch entry, one block of queries."""
    blocks = tl.cdiv(T, BLOCK_T)
    head = tl.program_id(0) // blocks
    # The last queries see the most keys. They begin first, so that no long program is left at the end.
    first_t = (blocks - 1 - tl.program_id(0) % blocks) * BLOCK_T
    b = head // H
    h = head % H
    g = h // GROUP
    q = dot_operand(q_desc.load([b, h, first_t, 0]).reshape(BLOCK_T, BLOCK_D))

    last_seen = S - T + first_t + tl.arange(0, BLOCK_T)
    end = S
    seen_by_all = S  # keys that every query of this block sees
    if CAUSAL:
        end = tl.maximum(tl.minimum(S - T + first_t + BLOCK_T, S), 0)
        seen_by_all = tl.maximum(tl.minimum(S - T + first_t + 1, S), 0)
    unmasked = seen_by_all // BLOCK_S * BLOCK_S

    m, l, acc = new_state(BLOCK_T, BLOCK_D)
    m, l, acc = attend_tiles(
        m, l, acc, q, k_desc, v_desc, b, g, 0, unmasked, S, last_seen, scale_log2,
        False, CAUSAL, BLOCK_S, BLOCK_D,
    )  # fmt: skip
    m, l, acc = attend_tiles(
        m, l, acc, q, k_desc, v_desc, b, g, unmasked, end, S, last_seen, scale_log2,
        True, CAUSAL, BLOCK_S, BLOCK_D,
    )  # fmt: skip
    out = finish(l, acc).to(out_desc.dtype)
    out_desc.store([b, h, first_t, 0], out.reshape(1, 1, BLOCK_T, BLOCK_D))


def launch(q, k, v, out, causal: bool, factor: float, config: Config) -> torch.Tensor:
    """Fills out [B, H, T, D]; what flash_attention checks is checked. ValueError for other strides."""
    (B, H, T, D), (G, S) = q.shape, k.shape[1:3]
    tile = lambda rows: [1, 1, rows, padded_head(D)]  # noqa: E731
    rows, keys = tile(config["BLOCK_T"]), tile(config["BLOCK_S"])
    programs = triton.cdiv(T, config["BLOCK_T"]) * B * H
    flash_attention_tma_kernel[(programs,)](
        descriptor("q", q, rows), descriptor("k", k, keys), descriptor("v", v, keys),
        descriptor("out", out, rows), H, H // G, T, S, factor,
        CAUSAL=causal, BLOCK_D=padded_head(D), **config.kwargs,
    )  # fmt: skip
    return out
