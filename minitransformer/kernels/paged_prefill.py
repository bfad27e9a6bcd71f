"""Paged prefill: FlashAttention for pieces of prompts over a cache that lies in blocks.

A serving step computes pieces of several prompts at once, each behind its own number of cached tokens. Here
queries are tiled as in flash_attention.py and keys are found through a block table as in paged_attention.py,
so that nothing is gathered first. What a query may see is told by its position in its sequence: all tokens
up to and including its own (vLLM, Kwon et al. 2023, arXiv 2309.06180; chunks as in Sarathi-Serve, arXiv
2403.02310).
"""

import torch
import triton
import triton.language as tl

from minitransformer.kernels.attention_configs import prefill_configs
from minitransformer.kernels.attention_tiles import load_tile, padded_head, scale_log2
from minitransformer.kernels.flash_attention import flash_attention_reference
from minitransformer.kernels.online_softmax import DOT_PRECISION, finish, new_state, online_softmax_step
from minitransformer.kernels.paged_attention import require_paged
from minitransformer.kernels.runtime import require_dtype, require_shape, require_tensors
from minitransformer.kernels.split_keys import INTEGERS
from minitransformer.kernels.tuning import Config, bucket, fastest


@triton.jit
def attend_paged_blocks(
    m,  # state of the online softmax, see online_softmax.py
    l,
    acc,
    q,  # [BLOCK_T, BLOCK_D]
    k_ptr,
    v_ptr,
    table_ptr,  # of this sequence
    k_stride_n,
    k_stride_s,
    k_stride_d,
    v_stride_n,
    v_stride_s,
    v_stride_d,
    table_stride_m,
    first,  # keys from here on
    end,  # up to here
    position,  # [BLOCK_T]: the last key that each query may see; looked at only if MASKED
    scale_log2,
    MASKED: tl.constexpr,  # whether some query must not see some key of these
    TOKENS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The state after the keys from `first` to `end`."""
    keys = tl.arange(0, BLOCK_S)
    dims = tl.arange(0, BLOCK_D)
    # The table is read a step ahead: keys can be on their way early only where their addresses are known.
    block = tl.load(table_ptr + (first + keys) // TOKENS * table_stride_m, mask=first + keys < end, other=0)
    for start in range(first, end, BLOCK_S):
        s = start + keys
        k_rows = block.to(tl.int64) * k_stride_n + s % TOKENS * k_stride_s
        k = load_tile(k_ptr + k_rows[:, None] + dims[None, :] * k_stride_d, s < end, D, BLOCK_D, MASKED)
        scores = tl.dot(q, tl.trans(k), input_precision=DOT_PRECISION)  # [BLOCK_T, BLOCK_S]
        if MASKED:
            scores = tl.where(s[None, :] <= position[:, None], scores, -float("inf"))
        v_rows = block.to(tl.int64) * v_stride_n + s % TOKENS * v_stride_s
        v = load_tile(v_ptr + v_rows[:, None] + dims[None, :] * v_stride_d, s < end, D, BLOCK_D, MASKED)
        m, l, acc = online_softmax_step(m, l, acc, scores, v, scale_log2)
        s += BLOCK_S
        block = tl.load(table_ptr + s // TOKENS * table_stride_m, mask=s < end, other=0)
    return m, l, acc


@triton.jit
def paged_prefill_kernel(
    q_ptr,  # [B, T, H, D]
    k_ptr,  # [N, block, G, D]
    v_ptr,  # [N, block, G, D]
    table_ptr,  # [B, M]: the blocks of each sequence, in the order of its tokens
    positions_ptr,  # [B, T]: of each query in its sequence
    out_ptr,  # [B, T, H, D], contiguous, to write
    q_stride_b,  # elements from one sequence, token, head or dimension to the next
    q_stride_t,
    q_stride_h,
    q_stride_d,
    k_stride_n,  # elements from one block, token, head or dimension to the next
    k_stride_s,
    k_stride_g,
    k_stride_d,
    v_stride_n,
    v_stride_s,
    v_stride_g,
    v_stride_d,
    table_stride_b,
    table_stride_m,
    H,  # query heads
    GROUP,  # query heads that share a key/value head, H / G
    T,  # queries of a sequence
    S,  # tokens that a row of the table has room for, M * block
    scale_log2,  # softmax scale times log2(e)
    TOKENS: tl.constexpr,  # of a cache block; any number
    D: tl.constexpr,  # head dim
    BLOCK_T: tl.constexpr,  # queries of a program
    BLOCK_S: tl.constexpr,  # keys that it looks at in one step, of several cache blocks or part of one
    BLOCK_D: tl.constexpr,  # a power of two, at least D and 16
):
    """One program: one head of one sequence, one block of its queries."""
    blocks = tl.cdiv(T, BLOCK_T)
    head = tl.program_id(0) // blocks
    # The last queries see the most keys. They begin first, so that no long program is left at the end.
    first_t = (blocks - 1 - tl.program_id(0) % blocks) * BLOCK_T
    b = (head // H).to(tl.int64)  # offsets between sequences may pass 2^31
    h = head % H
    g = (h // GROUP).to(tl.int64)
    t = first_t + tl.arange(0, BLOCK_T)
    dims = tl.arange(0, BLOCK_D)

    q_ptr += b * q_stride_b + h * q_stride_h
    q = load_tile(q_ptr + t[:, None] * q_stride_t + dims[None, :] * q_stride_d, t < T, D, BLOCK_D, True)
    # Rows behind the last query see nothing, and must not widen what this block visits.
    position = tl.load(positions_ptr + b * T + t, mask=t < T, other=-1).to(tl.int32)
    end = tl.minimum(tl.max(position, 0) + 1, S)
    seen_by_all = tl.min(tl.where(t < T, position, S), 0) + 1
    unmasked = tl.maximum(tl.minimum(seen_by_all, end), 0) // BLOCK_S * BLOCK_S
    table_ptr += b * table_stride_b
    k_ptr += g * k_stride_g
    v_ptr += g * v_stride_g

    m, l, acc = new_state(BLOCK_T, BLOCK_D)
    m, l, acc = attend_paged_blocks(
        m, l, acc, q, k_ptr, v_ptr, table_ptr, k_stride_n, k_stride_s, k_stride_d, v_stride_n, v_stride_s,
        v_stride_d, table_stride_m, 0, unmasked, position, scale_log2, False, TOKENS, D, BLOCK_S, BLOCK_D,
    )  # fmt: skip
    m, l, acc = attend_paged_blocks(
        m, l, acc, q, k_ptr, v_ptr, table_ptr, k_stride_n, k_stride_s, k_stride_d, v_stride_n, v_stride_s,
        v_stride_d, table_stride_m, unmasked, end, position, scale_log2, True, TOKENS, D, BLOCK_S, BLOCK_D,
    )  # fmt: skip

    at = ((b * T + t) * H + h)[:, None] * D + dims[None, :]
    tl.store(out_ptr + at, finish(l, acc), mask=(t < T)[:, None] & (dims < D)[None, :])


def paged_prefill_reference(
    q, k_blocks, v_blocks, block_table, positions, *, scale: float | None = None
) -> torch.Tensor:
    """The same in plain PyTorch, a query at a time over its blocks copied together. -> [B, T, H, D]"""
    table = block_table.long().clamp(0, len(k_blocks) - 1)  # entries behind a sequence may be anything
    k, v = (blocks[table].flatten(1, 2).transpose(1, 2) for blocks in (k_blocks, v_blocks))  # [B, G, S, D]
    out = torch.empty_like(q)
    for b, row in enumerate(positions.tolist()):
        for t, position in enumerate(row):
            seen = (x[b : b + 1, :, : position + 1] for x in (k, v))
            one = q[b : b + 1, t, :, None]  # [1, H, 1, D]
            out[b, t] = flash_attention_reference(one, *seen, causal=False, scale=scale)[0, :, 0]
    return out


def paged_prefill(
    q: torch.Tensor,
    k_blocks: torch.Tensor,
    v_blocks: torch.Tensor,
    block_table: torch.Tensor,
    positions: torch.Tensor,
    *,
    scale: float | None = None,
    config: Config | None = None,
) -> torch.Tensor:
    """Attention of many queries a sequence over a cache in blocks. q [B, T, H, D] -> [B, T, H, D]

    k_blocks, v_blocks  [N, block, G, D]: `block` tokens each, any number; H a multiple of G
    block_table         [B, M] int32 or int64: the blocks that hold each sequence, in order. Entries behind
                        the last token that a query sees are not read.
    positions           [B, T] int32 or int64: of each query in its sequence; it sees the tokens up to it,
                        which the cache must hold already. In any order, and one may stand twice (padding);
                        rising ones, as a prompt has, visit the fewest keys.
    scale, config       as in flash_attention
    float32, bfloat16 or float16; D up to 256; any strides. On a GPU the numbers in block_table and positions
    are not checked, because to look at them would wait for the GPU.
    Raises TypeError for another dtype, ValueError for shapes, numbers, a device or a scale that does not fit.
    """
    _require_positions(q, positions)
    require_paged(q[:, 0], k_blocks, v_blocks, block_table, positions.amax(1) + 1)
    factor = scale_log2(scale, q.shape[3])
    run = lambda config: _launch(q, k_blocks, v_blocks, block_table, positions, factor, config)  # noqa: E731
    if config is None:
        (B, T, H, D), (_, tokens, G, _) = q.shape, k_blocks.shape
        sizes = bucket(B * H), bucket(T), bucket(block_table.shape[1] * tokens)
        key = ("paged_prefill", q.dtype, D, tokens, H // G, *sizes)
        config = fastest(key, prefill_configs(D, q.dtype), run, q.device)
    return run(config)


def _launch(q, k_blocks, v_blocks, block_table, positions, factor: float, config: Config) -> torch.Tensor:
    (B, T, H, D), (_, tokens, G, _) = q.shape, k_blocks.shape
    out = torch.empty(B, T, H, D, dtype=q.dtype, device=q.device)
    strides = *q.stride(), *k_blocks.stride(), *v_blocks.stride(), *block_table.stride()
    paged_prefill_kernel[(triton.cdiv(T, config["BLOCK_T"]) * B * H,)](
        q, k_blocks, v_blocks, block_table, positions.contiguous(), out, *strides, H, H // G, T,
        block_table.shape[1] * tokens, factor, TOKENS=tokens, D=D, BLOCK_D=padded_head(D), **config.kwargs,
    )  # fmt: skip
    return out


def _require_positions(q, positions):
    require_tensors(q=q, positions=positions)
    require_shape("q", q, "B", "T", "H", "D")
    require_dtype(INTEGERS, positions=positions)
    require_shape("positions", positions, *q.shape[:2])
    if 0 in q.shape:
        raise ValueError(f"attention needs at least one of each, got q {list(q.shape)}")
    if positions.device.type == "cpu" and positions.min() < 0:
        raise ValueError(f"positions count from 0, got {positions.min()}")
