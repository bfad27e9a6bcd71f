"""Flash-Decoding: attention of one new query a sequence over a long cache.

flash_attention.py gives each block of queries one program. With a single query that is one program a head,
each of them reading the whole cache of its head while most of the GPU stands idle. So the keys are split:
each split is a program of its own, and a second, small kernel merges what they found (Flash-Decoding, Dao
et al. 2023, pytorch.org/blog/flash-decoding). splits.py chooses how many.

Query heads of a group stand together as rows of one tile, so that every key is read once for all of them;
reading keys and values is all the time that this takes. The tile is padded to the 16 rows that tensor
cores multiply.
"""

import math

import torch
import triton
import triton.language as tl

from minitransformer.kernels.attention_tiles import load_tile, padded_head, require_qkv, scale_log2
from minitransformer.kernels.online_softmax import DOT_PRECISION, new_state, online_softmax_step
from minitransformer.kernels.split_keys import (
    attend_in_splits,
    load_length,
    load_queries,
    require_lengths,
    rows_of_tile,
    split_range,
    store_split,
)
from minitransformer.kernels.tuning import Config


@triton.jit
def flash_decode_kernel(
    q_ptr,  # [B, H, D]
    k_ptr,  # [B, G, S, D]
    v_ptr,  # [B, G, S, D]
    lengths_ptr,  # [B]: keys that each sequence has; None: S
    out_ptr,  # [B, H, splits, D], to write
    lse_ptr,  # [B, H, splits], to write
    q_stride_b,  # elements from one batch entry, head, token or dimension to the next
    q_stride_h,
    q_stride_d,
    k_stride_b,
    k_stride_g,
    k_stride_s,
    k_stride_d,
    v_stride_b,
    v_stride_g,
    v_stride_s,
    v_stride_d,
    G,  # key/value heads
    GROUP,  # query heads that share one, H / G
    S,  # keys that the tensors have room for
    scale_log2,  # softmax scale times log2(e)
    D: tl.constexpr,  # head dim
    BLOCK_R: tl.constexpr,  # query heads of a program
    BLOCK_S: tl.constexpr,  # keys that it looks at in one step
    BLOCK_D: tl.constexpr,  # a power of two, at least D and 16
):
    """One program: up to BLOCK_R query heads of one group of one sequence, one split of its keys."""
    row_blocks = tl.cdiv(GROUP, BLOCK_R)
    first_row = tl.program_id(0) % row_blocks * BLOCK_R
    kv_head = tl.program_id(0) // row_blocks  # of B * G
    b = (kv_head // G).to(tl.int64)  # offsets between heads may pass 2^31
    g = (kv_head % G).to(tl.int64)
    split = tl.program_id(1)
    splits = tl.num_programs(1)
    keys = tl.arange(0, BLOCK_S)
    dims = tl.arange(0, BLOCK_D)

    q_ptr += b * q_stride_b + g * GROUP * q_stride_h
    q = load_queries(q_ptr, q_stride_h, q_stride_d, first_row, GROUP, D, BLOCK_R, BLOCK_D)
    first, end = split_range(load_length(lengths_ptr, b, S), split, splits, BLOCK_S)
    k_ptr += b * k_stride_b + g * k_stride_g + first.to(tl.int64) * k_stride_s
    v_ptr += b * v_stride_b + g * v_stride_g + first.to(tl.int64) * v_stride_s
    k_offsets = keys[:, None] * k_stride_s + dims[None, :] * k_stride_d
    v_offsets = keys[:, None] * v_stride_s + dims[None, :] * v_stride_d

    m, l, acc = new_state(BLOCK_R, BLOCK_D)
    for start in range(first, end, BLOCK_S):
        inside = start + keys < end
        k = load_tile(k_ptr + k_offsets, inside, D, BLOCK_D, True)
        scores = tl.dot(q, tl.trans(k), input_precision=DOT_PRECISION)  # [BLOCK_R, BLOCK_S]
        scores = tl.where(inside[None, :], scores, -float("inf"))
        v = load_tile(v_ptr + v_offsets, inside, D, BLOCK_D, True)
        m, l, acc = online_softmax_step(m, l, acc, scores, v, scale_log2)
        k_ptr += BLOCK_S * k_stride_s
        v_ptr += BLOCK_S * v_stride_s
    first_head = kv_head * GROUP + first_row
    store_split(
        out_ptr, lse_ptr, m, l, acc, first_head, GROUP - first_row, split, splits, D, BLOCK_R, BLOCK_D
    )


def flash_decode_reference(
    q, k, v, *, num_splits: int | None = None, context_lens=None, scale: float | None = None
) -> torch.Tensor:
    """The same in plain PyTorch, in float32 at least; into how many parts it splits changes nothing."""
    B, H, _, D = q.shape
    G, S = k.shape[1], k.shape[2]
    wide = torch.promote_types(q.dtype, torch.float32)
    lengths = torch.full((B,), S, device=q.device) if context_lens is None else context_lens
    hidden = torch.arange(S, device=q.device) >= lengths[:, None]  # [B, S]
    grouped = q.to(wide).reshape(B, G, H // G, D)  # the heads that share keys beside each other
    scores = grouped @ k.to(wide).mT * (D**-0.5 if scale is None else scale)  # [B, G, H/G, S]
    hidden = hidden[:, None, None]
    weights = scores.masked_fill(hidden, -math.inf).softmax(-1).masked_fill(hidden, 0.0)
    values = v.to(wide).masked_fill(hidden.mT, 0.0)  # what lies behind a sequence may be no number at all
    return (weights @ values).reshape(q.shape).to(q.dtype)


def flash_decode(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    num_splits: int | None = None,
    context_lens: torch.Tensor | None = None,
    scale: float | None = None,
    config: Config | None = None,
) -> torch.Tensor:
    """softmax(q k^T * scale) v for one query a sequence: q [B, H, 1, D], k, v [B, G, S, D]. -> [B, H, 1, D]

    num_splits    programs that share the keys of one head; None: see splits.py
    context_lens  [B] int32 or int64: how many of its S keys each sequence has; None: all. A sequence with
                  none gets zeros. On a GPU the numbers are not checked, but never more than S keys are read.
    scale         None: 1 / sqrt(D)
    config        None: the fastest for this shape on this GPU, found at its first use
    float32, bfloat16 or float16; H a multiple of G; D up to 256; any strides.
    Raises TypeError for another dtype, ValueError for shapes, lengths, a device or a scale that does not fit.
    """
    require_qkv(q, k, v)
    B, H, T, D = q.shape
    G, S = k.shape[1], k.shape[2]
    if T != 1:
        raise ValueError(f"flash_decode takes one query a sequence, got {T}: use flash_attention")
    if context_lens is not None:
        require_lengths(context_lens, B, S, q)
        context_lens = context_lens.contiguous()
    rows = rows_of_tile(H // G)
    programs = B * G * triton.cdiv(H // G, rows)
    strides = *q[:, :, 0].stride(), *k.stride(), *v.stride()
    factor, BLOCK_D = scale_log2(scale, D), padded_head(D)

    def launch(parts, lse, config):
        flash_decode_kernel[(programs, parts.shape[2])](
            q, k, v, context_lens, parts, lse, *strides, G, H // G, S, factor,
            D=D, BLOCK_R=rows, BLOCK_D=BLOCK_D, **config.kwargs,
        )  # fmt: skip

    out = attend_in_splits(launch, "flash_decode", q[:, :, 0], S, rows, programs, num_splits, config)
    return out[:, :, None]
