"""Whole answers to exercise 07 that go another way than the solution; all of them are right."""

NAPKIN_BY_COST_MODEL = """
from minitransformer.roofline import Device
from minitransformer.roofline.attention_bytes import (
    flash_attention_cost,
    longest_that_fits,
    naive_attention_cost,
)

seed = 9
f = napkin("07.napkin", seed)
shape = (1, f["heads"], f["kv_heads"], f["tokens"], f["tokens"], f["head_dim"])
chip = Device("chip", {"bf16": f["tflops"] * 1e12}, bandwidth=f["gb_s"] * 1e9, memory_bytes=1e9)
naive, flash = naive_attention_cost(*shape), flash_attention_cost(*shape)
answer = {
    "naive_gb": naive.bytes / 1e9,
    "flash_mb": flash.bytes / 1e6,
    "l2_tokens": longest_that_fits(f["l2_mb"] * 1e6, f["heads"]),
    "memory_tokens": longest_that_fits(f["free_gb"] * 1e9, f["heads"], matrices=2),
    "naive_ms": 1e3 * chip.time(naive),
    "flash_ms": 1e3 * chip.time(flash),
}
"""

STEP_ROW_BY_ROW = """
def absorb(m, l, acc, scores, v):
    m, l, acc = m.clone(), l.clone(), acc.clone()
    for t in range(len(m)):
        for n in range(scores.shape[1]):
            x = scores[t, n]
            if x == -torch.inf:
                continue
            if x > m[t]:
                shrink = torch.exp(m[t] - x)
                l[t], acc[t], m[t] = l[t] * shrink, acc[t] * shrink, x
            weight = torch.exp(x - m[t])
            l[t] += weight
            acc[t] += weight * v[n]
    return m, l, acc
"""

STEP_IN_LOGARITHMS = """
def absorb(m, l, acc, scores, v):
    before = m.double() + l.double().log()  # log-sum-exp so far; l is 1 from the first key on
    after = torch.logaddexp(before, scores.double().logsumexp(1))
    seen = after > -torch.inf
    base = torch.where(seen, after, 0.0)
    shares = (scores.double() - base[:, None]).exp()
    acc = acc * (before - base).exp()[:, None] + shares @ v.double()
    return after, seen.double(), acc
"""

MERGE_BY_LARGEST = """
def combine(outs, lses):
    top = lses[0]
    for lse in lses[1:]:
        top = torch.maximum(top, lse)
    base = torch.where(top.isfinite(), top, torch.zeros_like(top))
    total, out = torch.zeros_like(top), torch.zeros_like(outs[0])
    for o, lse in zip(outs, lses):
        weight = torch.exp(lse - base)
        total = total + weight
        out = out + weight[:, None] * o
    return out / total.clamp(min=1e-30)[:, None], base + total.log()
"""

BLOCK_BY_BLOCK_MERGE = """
def combine(outs, lses):
    out, lse = outs[0], lses[0]
    for o, x in zip(outs[1:], lses[1:]):
        share = torch.sigmoid(x - lse).nan_to_num(0.0)  # of the newcomer, among the two
        out = out + share[:, None] * (o - out)
        lse = torch.logaddexp(lse, x)
    return out, lse
"""

KERNEL_IN_TWO_LOOPS = """
@triton.jit
def tile(
    q, m, l, acc, k_ptr, v_ptr, kv, start, last, S, scale, d,
    D: tl.constexpr, BLOCK_S: tl.constexpr, FULL: tl.constexpr,
):
    s = start + tl.arange(0, BLOCK_S)
    at = kv + s[:, None] * D + d[None, :]
    if FULL:
        k = tl.load(k_ptr + at)
        v = tl.load(v_ptr + at)
        scores = tl.dot(q, tl.trans(k)) * scale
    else:
        k = tl.load(k_ptr + at, mask=s[:, None] < S, other=0.0)
        v = tl.load(v_ptr + at, mask=s[:, None] < S, other=0.0)
        scores = tl.where(s[None, :] <= last[:, None], tl.dot(q, tl.trans(k)) * scale, float("-inf"))
        scores = tl.where(s[None, :] < S, scores, float("-inf"))
    top = tl.maximum(m, tl.max(scores, axis=1))
    p = tl.exp(scores - top[:, None])
    old = tl.exp(m - top)
    return top, l * old + tl.sum(p, axis=1), tl.dot(p.to(v.dtype), v, acc * old[:, None])


@triton.jit
def flash_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, T, S, scale, GROUP: tl.constexpr, D: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    block, head = tl.program_id(0), tl.program_id(1)
    t = block * BLOCK_T + tl.arange(0, BLOCK_T)
    d = tl.arange(0, D)
    rows = (head * T + t)[:, None] * D + d[None, :]
    q = tl.load(q_ptr + rows, mask=(t < T)[:, None], other=0.0)
    kv = (head // GROUP) * S * D
    last = S - T + t
    m = tl.full([BLOCK_T], -1.0e30, tl.float32)
    l = tl.zeros([BLOCK_T], tl.float32)
    acc = tl.zeros([BLOCK_T, D], tl.float32)
    full = (S - T + block * BLOCK_T + 1) // BLOCK_S * BLOCK_S
    for start in range(0, full, BLOCK_S):
        m, l, acc = tile(q, m, l, acc, k_ptr, v_ptr, kv, start, last, S, scale, d, D, BLOCK_S, True)
    for start in range(full, tl.minimum(S, S - T + block * BLOCK_T + BLOCK_T), BLOCK_S):
        m, l, acc = tile(q, m, l, acc, k_ptr, v_ptr, kv, start, last, S, scale, d, D, BLOCK_S, False)
    tl.store(out_ptr + rows, acc / l[:, None], mask=(t < T)[:, None])
"""

KERNEL_POWERS_OF_TWO = """
@triton.jit
def flash_kernel(
    Q, K, V, O, T, S, scale, GROUP: tl.constexpr, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr
):
    pid, h = tl.program_id(0), tl.program_id(1)
    t = pid * M + tl.arange(0, M)
    d = tl.arange(0, D)
    q = tl.load(Q + h * T * D + t[:, None] * D + d[None, :], mask=t[:, None] < T, other=0.0)
    m = tl.full([M], -1.0e38, tl.float32)
    l = tl.zeros([M], tl.float32)
    acc = tl.zeros([M, D], tl.float32)
    scale2 = scale * 1.4426950408889634
    keys = K + h // GROUP * S * D
    values = V + h // GROUP * S * D
    for block in range(0, tl.cdiv(tl.minimum(S, S - T + pid * M + M), N)):
        s = block * N + tl.arange(0, N)
        k_t = tl.load(keys + s[None, :] * D + d[:, None], mask=s[None, :] < S, other=0.0)
        scores = tl.dot(q, k_t) * scale2
        hidden = (s[None, :] - t[:, None] > S - T) | (s >= S)[None, :]
        scores = tl.where(hidden, -float("inf"), scores)
        new = tl.maximum(m, tl.max(scores, 1))
        p = tl.exp2(scores - new[:, None])
        l = l * tl.exp2(m - new) + tl.sum(p, 1)
        acc *= tl.exp2(m - new)[:, None]
        v = tl.load(values + s[:, None] * D + d[None, :], mask=s[:, None] < S, other=0.0)
        acc += tl.dot(p.to(v.dtype), v)
        m = new
    tl.store(O + h * T * D + t[:, None] * D + d[None, :], acc / l[:, None], mask=t[:, None] < T)
"""

BLOCKS_BY_HAND = """
from minitransformer.roofline.attention_bytes import reread_bytes

seed = 5
f = napkin("07.blocks", seed)
T, H, D, n = f["tokens"], f["heads"], f["head_dim"], f["programs"]
useful = 2 * H * D * T * (T + 1) / (f["tflops"] * 1e12)
answer = None
for block_s in (64, 32, 16, 128):
    for block_t in (64, 128, 256, 32, 16):
        asked = reread_bytes(1, H, T, T, D, block_t, block_s)
        for warps in (4, 8, 16):
            tiles = (block_t * D + block_t * block_s) / warps / 32
            shared = 2 * block_t * D + 8 * block_s * D
            enough = tiles + 60 <= 255 and (tiles + 60) * 32 * warps * n <= 65536
            room = shared * n <= f["shared_kb"] * 1024
            fed = asked <= useful * f["l2_tb_s"] * 1e12
            if enough and room and fed and -(-T // block_t) * H >= n * f["cores"] and answer is None:
                answer = {"block_t": block_t, "block_s": block_s, "warps": warps, "stages": 2}
                answer |= {"shared_bytes": shared, "tile_registers": tiles, "asked_gb": asked / 1e9}
"""
