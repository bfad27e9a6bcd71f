"""Paged attention: Flash-Decoding over a cache that lies in blocks, found through a block table.

A serving engine gives each sequence blocks of a few tokens as it grows, wherever there is one free (vLLM,
Kwon et al. 2023, arXiv 2309.06180). Token s of sequence b lies in block block_table[b, s // block], at
place s % block. All else is flash_decode.py: the same splits, the same softmax, the same merge.
"""

import torch
import triton
import triton.language as tl

from minitransformer.kernels.attention_tiles import load_tile, padded_head, require_heads, scale_log2
from minitransformer.kernels.flash_decode import flash_decode_reference
from minitransformer.kernels.online_softmax import DOT_PRECISION, new_state, online_softmax_step
from minitransformer.kernels.runtime import require_dtype, require_shape, require_tensors
from minitransformer.kernels.split_keys import (
    INTEGERS,
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
def paged_attention_kernel(
    q_ptr,  # [B, H, D]
    k_ptr,  # [N, block, G, D]
    v_ptr,  # [N, block, G, D]
    table_ptr,  # [B, M]: the blocks of each sequence, in the order of its tokens
    lengths_ptr,  # [B]: tokens that each sequence has
    out_ptr,  # [B, H, splits, D], to write
    lse_ptr,  # [B, H, splits], to write
    q_stride_b,  # elements from one sequence, head or dimension to the next
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
    G,  # key/value heads
    GROUP,  # query heads that share one, H / G
    S,  # tokens that a row of the table has room for, M * block
    scale_log2,  # softmax scale times log2(e)
    TOKENS: tl.constexpr,  # of a cache block; any number
    D: tl.constexpr,  # head dim
    BLOCK_R: tl.constexpr,  # query heads of a program
    BLOCK_S: tl.constexpr,  # keys that it looks at in one step, of several cache blocks or part of one
    BLOCK_D: tl.constexpr,  # a power of two, at least D and 16
):
    """One program: up to BLOCK_R query heads of one group of one sequence, one split of its tokens."""
    row_blocks = tl.cdiv(GROUP, BLOCK_R)
    first_row = tl.program_id(0) % row_blocks * BLOCK_R
    kv_head = tl.program_id(0) // row_blocks  # of B * G
    b = (kv_head // G).to(tl.int64)
    g = (kv_head % G).to(tl.int64)
    split = tl.program_id(1)
    splits = tl.num_programs(1)
    dims = tl.arange(0, BLOCK_D)

    q_ptr += b * q_stride_b + g * GROUP * q_stride_h
    q = load_queries(q_ptr, q_stride_h, q_stride_d, first_row, GROUP, D, BLOCK_R, BLOCK_D)
    first, end = split_range(load_length(lengths_ptr, b, S), split, splits, BLOCK_S)
    table_ptr += b * table_stride_b
    k_ptr += g * k_stride_g
    v_ptr += g * v_stride_g

    keys = tl.arange(0, BLOCK_S)
    # The table is read a step ahead: keys can be on their way early only where their addresses are known.
    block = tl.load(table_ptr + (first + keys) // TOKENS * table_stride_m, mask=first + keys < end, other=0)
    m, l, acc = new_state(BLOCK_R, BLOCK_D)
    for start in range(first, end, BLOCK_S):
        s = start + keys
        k_rows = block.to(tl.int64) * k_stride_n + s % TOKENS * k_stride_s
        k = load_tile(k_ptr + k_rows[:, None] + dims[None, :] * k_stride_d, s < end, D, BLOCK_D, True)
        scores = tl.dot(q, tl.trans(k), input_precision=DOT_PRECISION)  # [BLOCK_R, BLOCK_S]
        scores = tl.where((s < end)[None, :], scores, -float("inf"))
        v_rows = block.to(tl.int64) * v_stride_n + s % TOKENS * v_stride_s
        v = load_tile(v_ptr + v_rows[:, None] + dims[None, :] * v_stride_d, s < end, D, BLOCK_D, True)
        m, l, acc = online_softmax_step(m, l, acc, scores, v, scale_log2)
        s += BLOCK_S
        block = tl.load(table_ptr + s // TOKENS * table_stride_m, mask=s < end, other=0)
    first_head = kv_head * GROUP + first_row
    store_split(
        out_ptr, lse_ptr, m, l, acc, first_head, GROUP - first_row, split, splits, D, BLOCK_R, BLOCK_D
    )


def paged_attention_reference(
    q,
    k_blocks,
    v_blocks,
    block_table,
    context_lens,
    *,
    num_splits: int | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """The same in plain PyTorch: copies each sequence's blocks together first. -> [B, H, D]"""
    table = block_table.long().clamp(0, len(k_blocks) - 1)  # entries behind a sequence may be anything
    k, v = (blocks[table].flatten(1, 2).transpose(1, 2) for blocks in (k_blocks, v_blocks))  # [B, G, S, D]
    return flash_decode_reference(q[:, :, None], k, v, context_lens=context_lens, scale=scale)[:, :, 0]


def paged_attention(
    q: torch.Tensor,
    k_blocks: torch.Tensor,
    v_blocks: torch.Tensor,
    block_table: torch.Tensor,
    context_lens: torch.Tensor,
    *,
    num_splits: int | None = None,
    scale: float | None = None,
    config: Config | None = None,
) -> torch.Tensor:
    """Attention of one query a sequence over a cache in blocks. q [B, H, D] -> [B, H, D]

    k_blocks, v_blocks  [N, block, G, D]: `block` tokens each, any number; H a multiple of G
    block_table         [B, M] int32 or int64: the blocks that hold each sequence, in order. Entries behind
                        its last token are not read.
    context_lens        [B] int32 or int64: tokens of each sequence, at most M * block; none: zeros
    num_splits, scale, config  as in flash_decode
    float32, bfloat16 or float16; D up to 256; any strides. On a GPU the numbers in block_table and
    context_lens are not checked, because to look at them would wait for the GPU.
    Raises TypeError for another dtype, ValueError for shapes, numbers, a device or a scale that does not fit.
    """
    require_paged(q, k_blocks, v_blocks, block_table, context_lens)
    (B, H, D), (_, tokens, G, _) = q.shape, k_blocks.shape
    S, rows = block_table.shape[1] * tokens, rows_of_tile(H // G)
    programs = B * G * triton.cdiv(H // G, rows)
    strides = *q.stride(), *k_blocks.stride(), *v_blocks.stride(), *block_table.stride()
    factor, BLOCK_D, lengths = scale_log2(scale, D), padded_head(D), context_lens.contiguous()

    def launch(parts, lse, config):
        paged_attention_kernel[(programs, parts.shape[2])](
            q, k_blocks, v_blocks, block_table, lengths, parts, lse, *strides, G, H // G, S, factor,
            TOKENS=tokens, D=D, BLOCK_R=rows, BLOCK_D=BLOCK_D, **config.kwargs,
        )  # fmt: skip

    return attend_in_splits(launch, "paged_attention", q, S, rows, programs, num_splits, config)


def require_paged(q, k_blocks, v_blocks, block_table, context_lens):
    """Raises unless q [B, H, D] fits a cache in blocks, and on a CPU every number names what there is."""
    require_tensors(q=q, k_blocks=k_blocks, v_blocks=v_blocks, block_table=block_table)
    require_shape("q", q, "B", "H", "D")
    require_shape("k_blocks", k_blocks, "N", "block", "G", q.shape[2])
    require_shape("v_blocks", v_blocks, *k_blocks.shape)
    require_shape("block_table", block_table, q.shape[0], "M")
    require_dtype(INTEGERS, block_table=block_table)
    if 0 in q.shape or 0 in k_blocks.shape or 0 in block_table.shape:
        sizes = f"q {list(q.shape)}, k_blocks {list(k_blocks.shape)}, block_table {list(block_table.shape)}"
        raise ValueError(f"attention needs at least one of each, got {sizes}")
    require_heads(q, k_blocks, v_blocks, q.shape[1], k_blocks.shape[2])
    (N, tokens), M = k_blocks.shape[:2], block_table.shape[1]
    require_lengths(context_lens, len(q), M * tokens, q)
    if q.device.type == "cpu":
        used = torch.arange(M) * tokens < context_lens[:, None]
        wrong = block_table[used & ((block_table < 0) | (block_table >= N))]
        if len(wrong):
            raise ValueError(f"block_table names block {wrong[0]}, but there are {N} blocks, from 0")
