"""One step of softmax over keys that arrive a block at a time: what every attention kernel here is made of.

A softmax needs the largest score before its first exponential, and that is known only after the last key.
So keep the largest so far, m, and correct what was summed under an older one: each of those terms was
divided by 2^(m - old m) too little (Milakov and Gimelshein 2018, arXiv 1805.02867; Dao 2023, arXiv
2307.08691, section 3.1). The state of a row is m, the sum l of its weights and the weighted sum acc of
values; the result is acc / l, exactly what softmax over all keys gives.

Exponentials are powers of two, because that is the GPU's instruction: e^x = 2^(x log2(e)), and the factor
log2(e) goes into the scale. Knows nothing of masks, positions or memory: a key that must not be seen
comes with a score of -inf.
"""

import triton
import triton.language as tl

# Products of float32 on tensor cores: three of tf32 each, nearly as exact as float32. 16-bit types ignore it.
DOT_PRECISION = tl.constexpr("tf32x3")
# Where m starts: lower than any score, but finite. A row that has seen no key yet then meets
# 2^(-inf - m) = 0, where m = -inf would give 2^(-inf + inf), which is not a number.
LOWEST = tl.constexpr(-1.0e38)


@triton.jit
def new_state(ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    """The state of rows that have seen no key: m [ROWS], l [ROWS], acc [ROWS, BLOCK_D], in float32."""
    m = tl.full([ROWS], LOWEST, tl.float32)
    return m, tl.zeros([ROWS], tl.float32), tl.zeros([ROWS, BLOCK_D], tl.float32)


@triton.jit
def online_softmax_step(m, l, acc, scores, v, scale_log2):
    """The state after one more block of keys.

    scores      [ROWS, BLOCK_S] float32: q k^T, not scaled yet; -inf where a row must not see a key
    v           [BLOCK_S, BLOCK_D]: the block's values, finite where nobody sees them too (0 * NaN is NaN)
    scale_log2  above 0: the softmax scale times log2(e)
    """
    new_m = tl.maximum(m, tl.max(scores, 1) * scale_log2)
    weights = tl.exp2(scores * scale_log2 - new_m[:, None])  # at most 1; one fused multiply-add each
    shrink = tl.exp2(m - new_m)
    l = l * shrink + tl.sum(weights, 1)
    acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision=DOT_PRECISION)
    return new_m, l, acc


@triton.jit
def finish(l, acc):
    """acc / l: the attention of each row; zeros for a row that saw no key."""
    return acc / tl.where(l == 0, 1.0, l)[:, None]
