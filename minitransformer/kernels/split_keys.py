"""The two ends of split-K attention: which keys a split reads, and the merge of what the splits found.

A split leaves its result as if its keys were all there are, and lse: the logarithm of the sum of its
exponentials. Softmax over all keys is then an average of the splits' results, each weighted with
2^lse (logarithms are to base two, see online_softmax.py). An average without these weights is wrong: a
split whose keys nobody looks at would count as much as any other.
"""

import math
from collections.abc import Callable

import torch
import triton
import triton.language as tl

from minitransformer.kernels.attention_configs import decode_configs, decode_shared_bytes
from minitransformer.kernels.attention_tiles import load_tile, padded_head
from minitransformer.kernels.online_softmax import LOWEST, finish
from minitransformer.kernels.runtime import require_dtype, require_shape, require_tensors
from minitransformer.kernels.splits import choose_num_splits, places
from minitransformer.kernels.tuning import Config, bucket, fastest

SPLITS_AT_ONCE = 16  # that the merge holds in registers
MOST_ASKED = 65_535  # programs that a GPU can launch side by side in the second dimension of a grid
INTEGERS = (torch.int32, torch.int64)


@triton.jit
def split_range(length, split, splits, BLOCK_S: tl.constexpr):
    """First key and end of one split: whole blocks, shared out evenly. Empty where blocks run out."""
    blocks = tl.cdiv(length, BLOCK_S)
    split = split.to(tl.int64)  # the product with blocks may pass 2^31
    first = (split * blocks // splits * BLOCK_S).to(tl.int32)
    end = ((split + 1) * blocks // splits * BLOCK_S).to(tl.int32)
    return first, tl.minimum(end, length)


@triton.jit
def load_length(lengths_ptr, b, S):
    """Keys of sequence b: never more than S, for which there is memory. Without lengths, S."""
    if lengths_ptr is None:
        return S
    else:
        return tl.minimum(tl.maximum(tl.load(lengths_ptr + b), 0), S).to(tl.int32)


@triton.jit
def load_queries(
    q_ptr,  # of the first head of the group, [GROUP, D]
    q_stride_h,
    q_stride_d,
    first_row,  # of the group's heads, the first that this program has
    GROUP,
    D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The query heads of a group as rows of one tile [BLOCK_R, BLOCK_D]: they all read the same keys."""
    rows = (first_row + tl.arange(0, BLOCK_R)).to(tl.int64)
    dims = tl.arange(0, BLOCK_D)
    return load_tile(
        q_ptr + rows[:, None] * q_stride_h + dims[None, :] * q_stride_d, rows < GROUP, D, BLOCK_D, True
    )


@triton.jit
def store_split(
    out_ptr,  # [B * H, splits, D]
    lse_ptr,  # [B * H, splits]
    m,  # state of the online softmax after the split's last key
    l,
    acc,
    first_head,  # of B * H, the one in the first row
    rows_left,  # rows of the tile that are heads of this group
    split,
    splits,
    D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Writes what a split found. One that saw no key leaves zeros and the lowest lse there is."""
    rows = tl.arange(0, BLOCK_R)
    dims = tl.arange(0, BLOCK_D)
    at = (first_head.to(tl.int64) + rows) * splits + split
    inside = rows < rows_left
    tl.store(lse_ptr + at, m + tl.log2(tl.where(l == 0, 1.0, l)), mask=inside)
    out_ptrs = out_ptr + at[:, None] * D + dims[None, :]
    tl.store(out_ptrs, finish(l, acc), mask=inside[:, None] & (dims < D)[None, :])


@triton.jit
def merge_splits_kernel(
    parts_ptr,  # [rows, splits, D] float32
    lse_ptr,  # [rows, splits] float32
    out_ptr,  # [rows, D], to write
    splits,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,  # a power of two, at least D
    BLOCK: tl.constexpr,  # splits that are read at once
):
    """One program, one row: the online softmax again, over splits instead of keys."""
    row = tl.program_id(0).to(tl.int64)
    dims = tl.arange(0, BLOCK_D)
    m = LOWEST
    l = 0.0
    acc = tl.zeros([BLOCK_D], tl.float32)
    for first in range(0, splits, BLOCK):
        i = first + tl.arange(0, BLOCK)
        lse = tl.load(lse_ptr + row * splits + i, mask=i < splits, other=-float("inf"))
        inside = (i < splits)[:, None] & (dims < D)[None, :]
        part = tl.load(parts_ptr + (row * splits + i)[:, None] * D + dims[None, :], mask=inside, other=0.0)
        new_m = tl.maximum(m, tl.max(lse, 0))
        weights = tl.exp2(lse - new_m)
        shrink = tl.exp2(m - new_m)
        l = l * shrink + tl.sum(weights, 0)
        acc = acc * shrink + tl.sum(part * weights[:, None], 0)
        m = new_m
    tl.store(out_ptr + row * D + dims, acc / l, mask=dims < D)


def merge_splits_reference(parts: torch.Tensor, lse: torch.Tensor) -> torch.Tensor:
    """The average of parts [B, H, splits, D], weighted with 2^lse [B, H, splits]. -> [B, H, D]"""
    weights = torch.softmax(lse * math.log(2), dim=-1)
    return (weights[..., None] * parts).sum(-2)


def merge_splits(parts: torch.Tensor, lse: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The same by a kernel: parts and lse float32 and contiguous. -> [B, H, D] in `dtype`"""
    B, H, splits, D = parts.shape
    out = torch.empty(B, H, D, dtype=dtype, device=parts.device)
    merge_splits_kernel[(B * H,)](
        parts, lse, out, splits, D=D, BLOCK_D=triton.next_power_of_2(D), BLOCK=SPLITS_AT_ONCE, num_warps=4
    )
    return out


def attend_in_splits(
    launch: Callable,  # (parts, lse, config): runs the kernel that fills them
    name: str,  # of the kernel
    q: torch.Tensor,  # [B, H, D]
    S: int,  # keys of the longest sequence there is room for
    rows: int,  # query heads of a program
    programs: int,  # of one split
    num_splits: int | None,
    config: Config | None,
) -> torch.Tensor:
    """Chooses what is not given, runs all splits, and merges. -> [B, H, D]"""
    (B, H, D), configs = q.shape, decode_configs(q.shape[2], q.dtype)

    def run(config):
        shared_bytes = decode_shared_bytes(config, rows, padded_head(D), q.dtype)
        at_once = places(q.device, shared_bytes, config.num_warps)
        splits = settle_splits(num_splits, programs, triton.cdiv(S, config["BLOCK_S"]), at_once)
        # A single split needs no merge: its part is the result.
        dtype = q.dtype if splits == 1 else torch.float32
        parts = torch.empty(B, H, splits, D, dtype=dtype, device=q.device)
        lse = torch.empty(B, H, splits, dtype=torch.float32, device=q.device)
        launch(parts, lse, config)
        return parts[:, :, 0] if splits == 1 else merge_splits(parts, lse, q.dtype)

    if config is None:
        key = (name, q.dtype, D, bucket(H * B // programs), bucket(programs), bucket(S), num_splits)
        config = fastest(key, configs, run, q.device)
    return run(config)


def rows_of_tile(group: int) -> int:
    """Query heads of one group that a program takes: at least the 16 rows that tensor cores multiply."""
    return min(max(triton.next_power_of_2(group), 16), 64)


def settle_splits(num_splits: int | None, programs: int, blocks: int, at_once: int) -> int:
    """The number of splits asked for, or the heuristic's; raises ValueError unless it can be launched."""
    if num_splits is None:
        return choose_num_splits(programs, at_once, blocks)
    if isinstance(num_splits, bool) or not isinstance(num_splits, int) or not 1 <= num_splits <= MOST_ASKED:
        raise ValueError(f"num_splits must be a whole number from 1 to {MOST_ASKED}, got {num_splits!r}")
    return num_splits


def require_lengths(context_lens: torch.Tensor, B: int, most: int, q: torch.Tensor):
    """Raises unless context_lens is [B] of whole numbers on q's device, and on a CPU within 0 and `most`.

    To look at numbers on a GPU would wait for it; there a kernel reads `most` keys where more are asked for.
    """
    require_tensors(q=q, context_lens=context_lens)
    require_dtype(INTEGERS, context_lens=context_lens)
    require_shape("context_lens", context_lens, B)
    if context_lens.device.type == "cpu" and not 0 <= context_lens.min() <= context_lens.max() <= most:
        raise ValueError(f"context_lens must lie within 0 and {most}, got {context_lens.tolist()}")
