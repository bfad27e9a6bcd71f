"""FlashAttention, forward: attention for many queries without the score matrix in memory.

The plain way writes T * S scores to memory, reads them for the softmax, and reads the weights again for
the product with the values. Here one program takes a block of queries through all keys, a block of keys
at a time: scores live in registers, and the online softmax corrects what was summed under an older
maximum. Scores no longer travel at all, each block of queries reads keys and values once (from the L2 cache
for the most part, where blocks of a head run side by side), and the extra memory falls to none.

After Dao et al. 2022 (arXiv 2205.14135) and FlashAttention-2 (arXiv 2307.08691): queries in the outer loop,
one division at the end. With a causal mask, blocks of keys above the diagonal are never visited, and only
those that the diagonal crosses pay for the mask. Query heads of one group read the same keys and values.

For inference: there is no backward pass. For a single query see flash_decode.py; for the same programs with
the copy engine of newer GPUs, which are taken there where they are faster, flash_attention_tma.py.
"""

import math

import torch
import triton
import triton.language as tl

from minitransformer.kernels import flash_attention_tma
from minitransformer.kernels.attention_configs import prefill_configs
from minitransformer.kernels.attention_tiles import load_tile, padded_head, require_qkv, scale_log2
from minitransformer.kernels.online_softmax import DOT_PRECISION, finish, new_state, online_softmax_step
from minitransformer.kernels.tma import fits_tma, has_tma
from minitransformer.kernels.tuning import Config, bucket, fastest


@triton.jit
def attend_blocks(
    m,  # state of the online softmax, see online_softmax.py
    l,
    acc,
    q,  # [BLOCK_T, BLOCK_D]
    k_ptr,  # where key `first` lies
    v_ptr,
    k_offsets,  # [BLOCK_S, BLOCK_D]: from there to each element of a block
    v_offsets,
    first,  # keys from here on, a multiple of BLOCK_S
    end,  # up to here
    S,  # keys that exist
    last_seen,  # [BLOCK_T]: the last key that each query may see; looked at only if CAUSAL and MASKED
    k_step,  # elements from one block of keys to the next
    v_step,
    scale_log2,
    MASKED: tl.constexpr,  # whether some query must not see some key of these blocks
    CAUSAL: tl.constexpr,
    D: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The state after the blocks of keys from `first` to `end`, and where the next block lies."""
    for start in range(first, end, BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        k = load_tile(k_ptr + k_offsets, s < S, D, BLOCK_D, MASKED)
        scores = tl.dot(q, tl.trans(k), input_precision=DOT_PRECISION)  # [BLOCK_T, BLOCK_S]
        if MASKED:
            seen = (s < S)[None, :]
            if CAUSAL:
                seen = seen & (s[None, :] <= last_seen[:, None])
            scores = tl.where(seen, scores, -float("inf"))
        v = load_tile(v_ptr + v_offsets, s < S, D, BLOCK_D, MASKED)
        m, l, acc = online_softmax_step(m, l, acc, scores, v, scale_log2)
        k_ptr += k_step
        v_ptr += v_step
    return m, l, acc, k_ptr, v_ptr


@triton.jit
def flash_attention_kernel(
    q_ptr,  # [B, H, T, D]
    k_ptr,  # [B, G, S, D]
    v_ptr,  # [B, G, S, D]
    out_ptr,  # [B, H, T, D], to write
    q_stride_b,  # elements from one batch entry, head, token or dimension to the next
    q_stride_h,
    q_stride_t,
    q_stride_d,
    k_stride_b,
    k_stride_g,
    k_stride_s,
    k_stride_d,
    v_stride_b,
    v_stride_g,
    v_stride_s,
    v_stride_d,
    out_stride_b,
    out_stride_h,
    out_stride_t,
    out_stride_d,
    H,  # query heads
    GROUP,  # query heads that share a key/value head, H / G
    T,  # queries
    S,  # keys
    scale_log2,  # softmax scale times log2(e)
    CAUSAL: tl.constexpr,  # query t sees keys up to S - T + t; else all
    D: tl.constexpr,  # head dim
    BLOCK_T: tl.constexpr,  # queries of a program
    BLOCK_S: tl.constexpr,  # keys that it looks at in one step
    BLOCK_D: tl.constexpr,  # a power of two, at least D and 16
):
    """One program: one head of one batch entry, one block of queries."""
    blocks = tl.cdiv(T, BLOCK_T)
    head = tl.program_id(0) // blocks
    # The last queries see the most keys. They begin first, so that no long program is left at the end.
    first_t = (blocks - 1 - tl.program_id(0) % blocks) * BLOCK_T
    b = (head // H).to(tl.int64)  # offsets between heads may pass 2^31
    h = (head % H).to(tl.int64)
    g = h // GROUP
    rows = tl.arange(0, BLOCK_T)
    keys = tl.arange(0, BLOCK_S)
    dims = tl.arange(0, BLOCK_D)

    t = first_t + rows
    q_ptr += b * q_stride_b + h * q_stride_h + first_t.to(tl.int64) * q_stride_t
    q = load_tile(q_ptr + rows[:, None] * q_stride_t + dims[None, :] * q_stride_d, t < T, D, BLOCK_D, True)
    k_ptr += b * k_stride_b + g * k_stride_g
    v_ptr += b * v_stride_b + g * v_stride_g
    # One pointer moves through the keys. A tile of pointers would take 64 bits an element, in registers.
    k_offsets = keys[:, None] * k_stride_s + dims[None, :] * k_stride_d
    v_offsets = keys[:, None] * v_stride_s + dims[None, :] * v_stride_d

    last_seen = S - T + t
    end = S
    seen_by_all = S  # keys that every query of this block sees
    if CAUSAL:
        end = tl.maximum(tl.minimum(S - T + first_t + BLOCK_T, S), 0)
        seen_by_all = tl.maximum(tl.minimum(S - T + first_t + 1, S), 0)
    unmasked = seen_by_all // BLOCK_S * BLOCK_S

    k_step = BLOCK_S * k_stride_s
    v_step = BLOCK_S * v_stride_s
    m, l, acc = new_state(BLOCK_T, BLOCK_D)
    m, l, acc, k_ptr, v_ptr = attend_blocks(
        m, l, acc, q, k_ptr, v_ptr, k_offsets, v_offsets, 0, unmasked, S, last_seen, k_step, v_step,
        scale_log2, False, CAUSAL, D, BLOCK_S, BLOCK_D,
    )  # fmt: skip
    m, l, acc, k_ptr, v_ptr = attend_blocks(
        m, l, acc, q, k_ptr, v_ptr, k_offsets, v_offsets, unmasked, end, S, last_seen, k_step, v_step,
        scale_log2, True, CAUSAL, D, BLOCK_S, BLOCK_D,
    )  # fmt: skip

    out_ptr += b * out_stride_b + h * out_stride_h + first_t.to(tl.int64) * out_stride_t
    out_ptrs = out_ptr + rows[:, None] * out_stride_t + dims[None, :] * out_stride_d
    tl.store(out_ptrs, finish(l, acc), mask=(t < T)[:, None] & (dims < D)[None, :])


def flash_attention_reference(q, k, v, *, causal: bool = True, scale: float | None = None) -> torch.Tensor:
    """The same in plain PyTorch, with the whole score matrix, in float32 at least. -> [B, H, T, D]"""
    B, H, T, D = q.shape
    G, S = k.shape[1], k.shape[2]
    wide = torch.promote_types(q.dtype, torch.float32)
    shared = q.to(wide).reshape(B, G, H // G, T, D)  # query heads beside the key/value head they share
    scores = shared @ k.to(wide)[:, :, None].mT * (D**-0.5 if scale is None else scale)
    if causal:
        t, s = torch.arange(T, device=q.device), torch.arange(S, device=q.device)
        hidden = s > S - T + t[:, None]
        weights = scores.masked_fill(hidden, -math.inf).softmax(-1)
        weights = weights.masked_fill(hidden, 0.0)  # a query that sees no key gets zeros
    else:
        weights = scores.softmax(-1)
    return (weights @ v.to(wide)[:, :, None]).reshape(q.shape).to(q.dtype)


def flash_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool = True,
    scale: float | None = None,
    config: Config | None = None,
) -> torch.Tensor:
    """softmax(q k^T * scale) v for q [B, H, T, D] and k, v [B, G, S, D], H a multiple of G. -> [B, H, T, D]

    causal  query t sees the keys up to S - T + t: the mask is aligned bottom right, because the last query
            is the newest token. With T > S the first T - S queries see nothing; their result is zeros.
    scale   None: 1 / sqrt(D)
    config  None: the fastest for this shape on this GPU, found at its first use
    float32, bfloat16 or float16; D up to 256; any strides. Products of float32 run on tensor cores as three
    of tf32 each, which is nearly as exact. The result lies in memory as [B, T, H, D]
    does, which is how an output projection reads it.
    Raises TypeError for another dtype, ValueError for shapes, a device or a scale that does not fit.
    """
    require_qkv(q, k, v)
    factor = scale_log2(scale, q.shape[3])
    if config is None:
        (B, H, T, D), (G, S) = q.shape, k.shape[1:3]
        tma = has_tma(q.device) and all(fits_tma(x) for x in (q, k, v)) and D * q.element_size() % 16 == 0
        key = ("flash_attention", q.dtype, D, causal, H // G, bucket(B * H), bucket(T), bucket(S), tma)
        run = lambda config: _launch(q, k, v, causal, factor, config)  # noqa: E731
        config = fastest(key, prefill_configs(D, q.dtype, tma=tma), run, q.device)
    return _launch(q, k, v, causal, factor, config)


def _launch(q, k, v, causal: bool, factor: float, config: Config) -> torch.Tensor:
    (B, H, T, D), (G, S) = q.shape, k.shape[1:3]
    out = torch.empty(B, T, H, D, dtype=q.dtype, device=q.device).transpose(1, 2)
    if config.tma:
        return flash_attention_tma.launch(q, k, v, out, causal, factor, config)
    programs = triton.cdiv(T, config["BLOCK_T"]) * B * H
    flash_attention_kernel[(programs,)](
        q, k, v, out, *q.stride(), *k.stride(), *v.stride(), *out.stride(), H, H // G, T, S, factor,
        CAUSAL=causal, D=D, BLOCK_D=padded_head(D), **config.kwargs,
    )  # fmt: skip
    return out
