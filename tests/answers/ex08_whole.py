"""Whole answers to exercise 08 that are right in another way than the solution."""

MERGE_BY_SOFTMAX = """
def merge_partials(m, l, acc):
    lse = torch.where(l > 0, m + l.log(), -1e30)
    out = acc / l.clamp(min=1e-30)[..., None]
    return (lse.softmax(-1)[..., None] * out).sum(-2)
"""

MERGE_ONE_BY_ONE = """
def merge_partials(m, l, acc):
    B, H, splits, D = acc.shape
    out = torch.zeros(B, H, D)
    for b in range(B):
        for h in range(H):
            top, total, state = -math.inf, 0.0, torch.zeros(D, dtype=torch.float64)
            for i in range(splits):
                if l[b, h, i] == 0:
                    continue
                new = max(top, float(m[b, h, i]))
                old, mine = math.exp(top - new) if top > -math.inf else 0.0, math.exp(float(m[b, h, i]) - new)
                total = total * old + mine * float(l[b, h, i])
                state = state * old + mine * acc[b, h, i].double()
                top = new
            out[b, h] = state / total if total else state
    return out
"""

_PARTIAL_HEAD = """
@triton.jit
def partial_kernel(
    q_ptr, k_ptr, v_ptr, lens_ptr, m_ptr, l_ptr, acc_ptr, stride_b, stride_g, stride_s, split, scale,
    GROUP: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr,
):
    b, g, i = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    H, splits = tl.num_programs(1) * GROUP, tl.num_programs(2)
    rows, dims, slots = tl.arange(0, ROWS), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK)
"""

PARTIAL_FROM_LOWEST = (
    _PARTIAL_HEAD
    + """
    q_ptr += (b * H + g * GROUP) * D
    real = (rows[:, None] < GROUP) & (dims[None, :] < D)
    q = tl.load(q_ptr + rows[:, None] * D + dims[None, :], mask=real, other=0.0).to(tl.float32) * scale
    m = tl.full([ROWS], -1e30, tl.float32)
    l = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, BLOCK_D], tl.float32)
    length = tl.load(lens_ptr + b)
    left = tl.maximum(tl.minimum(length - i * split, split), 0)
    base = b * stride_b + g * stride_g + i * split * stride_s
    for first in range(0, left, BLOCK):
        s = first + slots
        inside = (s < left)[:, None] & (dims < D)[None, :]
        at = base + s[:, None] * stride_s + dims[None, :]
        k = tl.load(k_ptr + at, mask=inside, other=0.0).to(tl.float32)
        v = tl.load(v_ptr + at, mask=inside, other=0.0).to(tl.float32)
        scores = tl.where((s < left)[None, :], tl.dot(q, tl.trans(k), input_precision="ieee"), -1e35)
        new_m = tl.maximum(m, tl.max(scores, 1))
        weights = tl.exp(scores - new_m[:, None])
        l = l * tl.exp(m - new_m) + tl.sum(weights, 1)
        acc = acc * tl.exp(m - new_m)[:, None] + tl.dot(weights, v, input_precision="ieee")
        m = new_m
    out = (b * H + g * GROUP + rows) * splits + i
    tl.store(m_ptr + out, tl.where(l > 0, m, -float("inf")), mask=rows < GROUP)
    tl.store(l_ptr + out, l, mask=rows < GROUP)
    tl.store(acc_ptr + out[:, None] * D + dims[None, :], acc, mask=real)
"""
)

PARTIAL_BY_SUMS = (
    _PARTIAL_HEAD
    + """
    for r in range(0, GROUP):
        row = b * H + g * GROUP + r
        q = tl.load(q_ptr + row * D + dims, mask=dims < D, other=0.0).to(tl.float32)
        m = -float("inf")
        l = 0.0
        acc = tl.zeros([BLOCK_D], tl.float32)
        end = tl.minimum((i + 1) * split, tl.load(lens_ptr + b))
        for first in range(i * split, end, BLOCK):
            s = first + slots
            inside = (s < end)[:, None] & (dims < D)[None, :]
            at = b * stride_b + g * stride_g + s[:, None] * stride_s + dims[None, :]
            k = tl.load(k_ptr + at, mask=inside, other=0.0).to(tl.float32)
            v = tl.load(v_ptr + at, mask=inside, other=0.0).to(tl.float32)
            scores = tl.where(s < end, tl.sum(k * q[None, :], 1) * scale, -float("inf"))
            new_m = tl.maximum(m, tl.max(scores, 0))
            weights = tl.exp(scores - new_m)
            l = l * tl.exp(m - new_m) + tl.sum(weights, 0)
            acc = acc * tl.exp(m - new_m) + tl.sum(weights[:, None] * v, 0)
            m = new_m
        tl.store(m_ptr + row * splits + i, m)
        tl.store(l_ptr + row * splits + i, l)
        tl.store(acc_ptr + (row * splits + i) * D + dims, acc, mask=dims < D)
"""
)

PARTIAL_MASKED_LOOP = (
    _PARTIAL_HEAD
    + """
    heads = g * GROUP + rows
    real = (rows < GROUP)[:, None] & (dims < D)[None, :]
    q = dot_operand(tl.load(q_ptr + (b * H + heads)[:, None] * D + dims[None, :], mask=real, other=0.0))
    length = tl.load(lens_ptr + b)
    m = tl.full([ROWS], -float("inf"), tl.float32)
    l = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, BLOCK_D], tl.float32)
    for first in range(i * split, (i + 1) * split, BLOCK):
        s = first + slots
        seen = s < length
        at = b * stride_b + g * stride_g + s[:, None] * stride_s + dims[None, :]
        k = dot_operand(tl.load(k_ptr + at, mask=seen[:, None] & (dims < D)[None, :], other=0.0))
        v = dot_operand(tl.load(v_ptr + at, mask=seen[:, None] & (dims < D)[None, :], other=0.0))
        scores = tl.where(seen[None, :], tl.dot(q, tl.trans(k)) * scale, -float("inf"))
        new_m = tl.maximum(m, tl.max(scores, 1))
        safe = tl.where(new_m == -float("inf"), 0.0, new_m)
        weights = tl.exp(scores - safe[:, None])
        shrink = tl.exp(m - safe)
        l = l * shrink + tl.sum(weights, 1)
        acc = acc * shrink[:, None] + tl.dot(weights.to(v.dtype), v)
        m = new_m
    at = (b * H + heads) * splits + i
    tl.store(m_ptr + at, m, mask=rows < GROUP)
    tl.store(l_ptr + at, l, mask=rows < GROUP)
    tl.store(acc_ptr + at[:, None] * D + dims[None, :], acc, mask=real)
"""
)

_PAGED_HEAD = """
@triton.jit
def paged_kernel(
    q_ptr, k_ptr, v_ptr, table_ptr, lens_ptr, out_ptr, columns, scale,
    GROUP: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr,
):
    b, g = tl.program_id(0), tl.program_id(1)
    G = tl.num_programs(1)
    rows, slots, dims = tl.arange(0, ROWS), tl.arange(0, BLOCK), tl.arange(0, D)
    length = tl.load(lens_ptr + b)
"""

PAGED_IN_TWO_PASSES = (
    _PAGED_HEAD
    + """
    row = b * G * GROUP + g * GROUP + rows
    real = (rows < GROUP)[:, None]
    q = dot_operand(tl.load(q_ptr + row[:, None] * D + dims[None, :], mask=real, other=0.0))
    m = tl.full([ROWS], -float("inf"), tl.float32)
    for j in range(0, tl.cdiv(length, BLOCK)):
        block = tl.load(table_ptr + b * columns + j)
        inside = slots < length - j * BLOCK
        at = block * BLOCK * G * D + slots[:, None] * G * D + g * D + dims[None, :]
        k = dot_operand(tl.load(k_ptr + at, mask=inside[:, None], other=0.0))
        scores = tl.where(inside[None, :], tl.dot(q, tl.trans(k)) * scale, -float("inf"))
        m = tl.maximum(m, tl.max(scores, 1))
    l = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, D], tl.float32)
    for j in range(0, tl.cdiv(length, BLOCK)):
        block = tl.load(table_ptr + b * columns + j)
        inside = slots < length - j * BLOCK
        at = block * BLOCK * G * D + slots[:, None] * G * D + g * D + dims[None, :]
        k = dot_operand(tl.load(k_ptr + at, mask=inside[:, None], other=0.0))
        v = dot_operand(tl.load(v_ptr + at, mask=inside[:, None], other=0.0))
        scores = tl.where(inside[None, :], tl.dot(q, tl.trans(k)) * scale, -float("inf"))
        weights = tl.exp(scores - m[:, None])
        l += tl.sum(weights, 1)
        acc += tl.dot(weights.to(v.dtype), v)
    out = (acc / l[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row[:, None] * D + dims[None, :], out, mask=real)
"""
)

PAGED_WITHOUT_TENSOR_CORES = (
    _PAGED_HEAD
    + """
    for r in range(0, GROUP):
        row = (b * G + g) * GROUP + r
        q = tl.load(q_ptr + row * D + dims).to(tl.float32)
        m = -1e30
        l = 0.0
        acc = tl.zeros([D], tl.float32)
        for first in range(0, length, BLOCK):
            block = tl.load(table_ptr + b * columns + first // BLOCK)
            inside = first + slots < length
            at = ((block * BLOCK + slots) * G + g)[:, None] * D + dims[None, :]
            k = tl.load(k_ptr + at, mask=inside[:, None], other=0.0).to(tl.float32)
            v = tl.load(v_ptr + at, mask=inside[:, None], other=0.0).to(tl.float32)
            scores = tl.where(inside, tl.sum(k * q[None, :], 1) * scale, -float("inf"))
            new_m = tl.maximum(m, tl.max(scores, 0))
            weights = tl.exp(scores - new_m)
            l = l * tl.exp(m - new_m) + tl.sum(weights, 0)
            acc = acc * tl.exp(m - new_m) + tl.sum(weights[:, None] * v, 0)
            m = new_m
        tl.store(out_ptr + row * D + dims, (acc / l).to(out_ptr.dtype.element_ty))
"""
)

FULL_WAVES = """
def choose_splits(batch, heads, kv_heads, head_dim, context, sms, bandwidth):
    programs, blocks = batch * kv_heads, -(-context // 64)
    step = 256 * head_dim * sms / bandwidth
    best, best_time = 1, -(-programs // sms) * blocks * step
    for waves in range(1, 200):
        n = min(waves * sms // programs, blocks, 128)
        if n < 2:
            continue
        time = -(-programs * n // sms) * -(-blocks // n) * step
        time += 2e-6 + 8 * batch * heads * n * (head_dim + 1) / bandwidth
        if time < best_time:
            best, best_time = n, time
    return best
"""
