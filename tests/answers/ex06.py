"""Answers to exercise 06 that are wrong in ways that people really write, and other right ones.

Most are the solution with a small change (edits.py).
"""

from answers.edits import Solution

SOLUTION = Solution("06_triton_matmul")
order = SOLUTION.edits("order-answer")
linear = SOLUTION.edits("linear-answer")
split = SOLUTION.edits("split-answer")
shape = SOLUTION.edits("shape-answer")


def body(source: str) -> str:
    """What stands between the marks of a solution."""
    return source.split("### BEGIN SOLUTION\n")[1].split("    ### END SOLUTION")[0]


def napkin(old: str, new: str) -> str:
    return SOLUTION.edited("napkin-answer", (old, new))


NAPKIN_BY_MATH = """
import math

seed = 4
f = napkin("06.napkin", seed)
rows, columns = math.ceil(f["M"] / f["tile_m"]), math.ceil(f["N"] / f["tile_n"])
waves = math.ceil(rows * columns / f["num_sms"])
most = f["M"]
while math.ceil((most + 1) / f["tile_m"]) * columns <= waves * f["num_sms"]:
    most += 1
answer = {
    "tiles": rows * columns,
    "waves": waves,
    "free_tokens": most - f["M"],
    "splits": math.ceil(0.9 * f["num_sms"] / math.ceil(f["N"] / f["thin_n"])),
    "share": (f["M"] / (rows * f["tile_m"]) * f["N"] / (columns * f["tile_n"]))
    * (rows * columns / (waves * f["num_sms"])),
    "flops_a_byte": 1 / (1 / f["tile_m"] + 1 / f["tile_n"]),
}
"""

ORDER_BODY = body(SOLUTION.cells["order-answer"])
ORDER_BY_GROUP = """
    group = program // (rows_of_tiles * GROUP_N)
    rest = program - group * rows_of_tiles * GROUP_N
    left = columns_of_tiles - group * GROUP_N
    width = tl.where(left < GROUP_N, left, GROUP_N)
    row = rest // width
    return row, group * GROUP_N + rest - row * width
"""

LINEAR_BODY = body(SOLUTION.cells["linear-answer"])
LINEAR_MOVING_POINTERS = """
    k = tl.arange(0, BLOCK_K)
    x_ptrs = x_ptr + m[:, None] * x_stride + k[None, :]
    w_ptrs = w_ptr + n[:, None] * w_stride + k[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for step in range(0, tl.cdiv(K, BLOCK_K)):
        left = K - step * BLOCK_K
        x = tl.load(x_ptrs, mask=(m[:, None] < M) & (k[None, :] < left), other=0.0)
        w = tl.load(w_ptrs, mask=(n[:, None] < N) & (k[None, :] < left), other=0.0)
        total += tl.dot(dot_operand(x), tl.trans(dot_operand(w)))
        x_ptrs += BLOCK_K
        w_ptrs += BLOCK_K
    total += tl.load(bias_ptr + n, mask=n < N, other=0.0)[None, :].to(tl.float32)
    tl.store(out_ptr + m[:, None] * out_stride + n[None, :], total, mask=(m[:, None] < M) & (n[None, :] < N))
"""
LINEAR_WRAPPED = """
    rows, columns = m % M, n % N
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    total += tl.load(bias_ptr + columns)[None, :].to(tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x = tl.load(x_ptr + rows[:, None] * x_stride + k[None, :], mask=k[None, :] < K, other=0.0)
        w = tl.load(w_ptr + columns[None, :] * w_stride + k[:, None], mask=k[:, None] < K, other=0.0)
        total = tl.dot(dot_operand(x), dot_operand(w), acc=total)
    tl.store(out_ptr + m[:, None] * out_stride + n[None, :], total, mask=(m[:, None] < M) & (n[None, :] < N))
"""

X_LOAD = "x = tl.load(x_ptrs, mask=(m < M)[:, None] & (k < K)[None, :], other=0.0)"
W_LOAD = "w = tl.load(w_ptrs, mask=(k < K)[:, None] & (n < N)[None, :], other=0.0)"
BIAS = "tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)"
DOT = "total = tl.dot(dot_operand(x), dot_operand(w), total)"

SPLIT_BY_STEPS = """
@triton.jit
def split_kernel(
    a_ptr, b_ptr, out_ptr, M, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    # every split takes each SPLITS-th block of K
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(tl.program_id(2) * BLOCK_K, K, SPLITS * BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        a = tl.load(a_ptr + m[:, None] * K + k[None, :], mask=(m < M)[:, None] & (k < K)[None, :], other=0.0)
        b = tl.load(b_ptr + k[:, None] * N + n[None, :], mask=(k < K)[:, None] & (n < N)[None, :], other=0.0)
        total = tl.dot(dot_operand(a), dot_operand(b), total)
    tl.atomic_add(out_ptr + m[:, None] * N + n[None, :], total, mask=(m < M)[:, None] & (n < N)[None, :])


def split_matmul(a, b, splits, out):
    out.fill_(0)
    (M, K), (_, N) = a.shape, b.shape
    grid = ((M + 15) // 16, (N + 15) // 16, splits)
    split_kernel[grid](a, b, out, M, N, K, 16, 16, 16, splits)
    return out
"""
OUT, INSIDE = "out_ptr + m[:, None] * N + n[None, :]", "mask=(m < M)[:, None] & (n < N)[None, :]"
ADD = f"tl.atomic_add({OUT}, total, {INSIDE})"
SPLIT_WHOLE_BLOCKS = (
    "part = tl.cdiv(K, SPLITS)  # rounded up, so that nothing is left over",
    "part = tl.cdiv(tl.cdiv(K, SPLITS), BLOCK_K) * BLOCK_K",
)

SHAPE_BY_HAND = """
import itertools
import math

seed = 1
f = napkin("06.shape", seed)


def sizes(hidden, ffn, vocab):
    head = (vocab / f["layers"], hidden)
    return [(3 * hidden, hidden), (hidden, hidden), (2 * ffn, hidden), (hidden, ffn), head]


def share_of(hidden, ffn, vocab):
    time = 0
    for i, (N, K) in enumerate(sizes(hidden, ffn, vocab)):
        width, times = (vocab, 1 / f["layers"]) if i == 4 else (N, 1)
        time += times * math.ceil(math.ceil(f["tokens"] / 128) * math.ceil(width / 256) / f["num_sms"]) * K
    useful = sum(N * K for N, K in sizes(hidden, ffn, f["words"])) * f["tokens"]
    return useful / (time * f["num_sms"] * 128 * 256)


vocab = (f["words"] + 63) // 64 * 64
best = None
for hidden, ffn in itertools.product(range(1024, 8192, 128), range(1024, 24_576, 64)):
    weights = sum(N * K for N, K in sizes(hidden, ffn, vocab)) * f["layers"]
    if 2 <= ffn / hidden <= 5 and 0.991 < weights / f["weights"] < 1.009:
        best = max(best or (0,), (share_of(hidden, ffn, vocab), hidden, ffn))
share, hidden, ffn = best
answer = {"hidden": hidden, "ffn": ffn, "vocab": vocab, "share": share}
"""
BEST = "hidden, ffn = max(shapes, key=lambda shape: share_of(*shape, vocab))"
WEIGHTS = 'abs(weights_of(h, n, vocab) / f["weights"] - 1) < 0.0099'

ANSWERS = {
    "06.napkin": {
        "wrong": {
            "edges left out": napkin(
                '-(-f["M"] // f["tile_m"]), -(-f["N"] // f["tile_n"])',
                'f["M"] // f["tile_m"], f["N"] // f["tile_n"]',
            ),
            "the last wave left out": napkin('-(-tiles // f["num_sms"])', 'tiles // f["num_sms"]'),
            "waves in part": napkin('waves = -(-tiles // f["num_sms"])', 'waves = tiles / f["num_sms"]'),
            "only the last row of tiles filled": napkin(
                'waves * f["num_sms"] // columns * f["tile_m"] - f["M"]', 'rows * f["tile_m"] - f["M"]'
            ),
            "all tokens for those that are free": napkin('f["tile_m"] - f["M"]', 'f["tile_m"]'),
            "waves alone": napkin('f["M"] * f["N"] / computed', 'tiles / (waves * f["num_sms"])'),
            "splits without need": napkin('>= 0.9 * f["num_sms"]', '>= 1.9 * f["num_sms"]'),
            "bytes forgotten": napkin(" * 2)\n### END", ")\n### END"),
        },
        "right": {
            "with ceil, counting up": NAPKIN_BY_MATH,
            "another seed": napkin("seed = 4", "seed = 11"),
        },
    },
    "06.order": {
        "wrong": {
            "the last group as wide as the others": order(
                ("width = tl.minimum(columns_of_tiles - first, GROUP_N)", "width = GROUP_N")
            ),
            "groups of rows": order(
                ("GROUP_N * rows_of_tiles", "GROUP_N * columns_of_tiles"),
                ("tl.minimum(columns_of_tiles - first", "tl.minimum(rows_of_tiles - first"),
                (
                    "return within // width, first + within % width",
                    "return first + within % width, within // width",
                ),
            ),
            "quotient and remainder exchanged": order(
                (
                    "return within // width, first + within % width",
                    "return within % width, first + within // width",
                )
            ),
            "column by column within a group": order(
                (
                    "return within // width, first + within % width",
                    "return within % rows_of_tiles, first + within // rows_of_tiles",
                )
            ),
            "no groups": order(
                (ORDER_BODY, "    return program // columns_of_tiles, program % columns_of_tiles\n")
            ),
            "row and column exchanged": order(
                (
                    "return within // width, first + within % width",
                    "return first + within % width, within // width",
                )
            ),
        },
        "right": {
            "by subtraction": order((ORDER_BODY, ORDER_BY_GROUP.lstrip("\n"))),
            "min instead of tl.minimum": order(("tl.minimum(", "min(")),
        },
    },
    "06.linear": {
        "wrong": {
            "no mask on K": linear(
                (X_LOAD, X_LOAD.replace(" & (k < K)[None, :]", "")),
                (W_LOAD, W_LOAD.replace("(k < K)[:, None] & ", "")),
            ),
            "no mask on the rows of x": linear((X_LOAD, X_LOAD.replace("(m < M)[:, None] & ", ""))),
            "no mask on the rows of w": linear((W_LOAD, W_LOAD.replace(" & (n < N)[None, :]", ""))),
            "no mask at the store": linear(
                ("total + bias[None, :], mask=(m < M)[:, None] & (n < N)[None, :])", "total + bias[None, :])")
            ),
            "the tail of K dropped": linear(
                ("range(0, K, BLOCK_K)", "range(0, K // BLOCK_K * BLOCK_K, BLOCK_K)")
            ),
            "only the last block kept": linear((DOT, DOT.replace(", total)", ")"))),
            "sums in float16": linear(
                ("tl.zeros([BLOCK_M, BLOCK_N], tl.float32)", "tl.zeros([BLOCK_M, BLOCK_N], tl.float16)"),
                (DOT, "total += tl.dot(dot_operand(x), dot_operand(w)).to(tl.float16)"),
            ),
            "rounded to the format of x in every step": linear(
                (DOT, DOT + "\n        total = total.to(x_ptr.dtype.element_ty).to(tl.float32)")
            ),
            "rows of x without gaps": linear(("m[:, None] * x_stride", "m[:, None] * K")),
            "rows of the result without gaps": linear(("m[:, None] * out_stride", "m[:, None] * N")),
            "w taken as [K, N]": linear(
                ("n[None, :] * w_stride + k[:, None]", "k[:, None] * w_stride + n[None, :]")
            ),
            "the bias in every step": linear(
                (DOT, f"{DOT}\n        total += {BIAS}[None, :]"), ("total + bias[None, :]", "total")
            ),
            "no bias": linear(("total + bias[None, :]", "total")),
            "no tensor cores": linear(
                (DOT, 'total = tl.dot(x.to(tl.float32), w.to(tl.float32), total, input_precision="ieee")')
            ),
        },
        "right": {
            "moving pointers": linear((LINEAR_BODY, LINEAR_MOVING_POINTERS.lstrip("\n"))),
            "edges that wrap around, the bias first": linear((LINEAR_BODY, LINEAR_WRAPPED.lstrip("\n"))),
        },
    },
    "06.split_k": {
        "wrong": {
            "nothing changed": "split_kernel, split_matmul = faulty_kernel, faulty_matmul",
            "not cleared": split(("    out.zero_()\n", "")),
            "stored, not added": split(("tl.atomic_add(", "tl.store(")),
            "loaded, added, stored": split(
                (ADD, f"tl.store({OUT}, tl.load({OUT}, {INSIDE}) + total, {INSIDE})")
            ),
            "what is left over of K dropped": split(("tl.cdiv(K, SPLITS)", "K // SPLITS")),
            "a block reaches into the next part": split(("inside = k < last", "inside = k < K")),
            "the last part runs past K": split(("last = tl.minimum(first + part, K)", "last = first + part")),
            "the grid rounded down": split(
                ("(triton.cdiv(M, 16), triton.cdiv(N, 16), splits)", "(M // 16, N // 16, splits)")
            ),
            "cleared by every program": split(
                ("    out.zero_()\n", ""), (ADD, f"tl.store({OUT}, 0.0 * total, {INSIDE})\n    {ADD}")
            ),
        },
        "right": {
            "every SPLITS-th block": SPLIT_BY_STEPS,
            "parts of whole blocks": split(SPLIT_WHOLE_BLOCKS),
        },
    },
    "06.shape": {
        "wrong": {
            "the shape that was proposed": shape((BEST, 'hidden, ffn = f["hidden"], f["ffn"]')),
            "by whole tiles alone": shape(
                ('waves = -(-tiles // f["num_sms"])', 'waves = tiles / f["num_sms"]')
            ),
            "the smallest that is allowed": shape((BEST, "hidden, ffn = min(shapes)")),
            "the weights forgotten": shape((WEIGHTS, "True")),
            "the vocabulary not padded": shape(('-(-f["words"] // 8) * 8', 'f["words"]')),
            "the vocabulary padded far": shape(('-(-f["words"] // 8) * 8', "2 ** 17")),
            "percent": shape(('"share": share}', '"share": 100 * share}')),
            "another chip": shape(('f["num_sms"]', "132")),
            "waves in part": shape(("return useful / spent", "return useful / (0.95 * spent)")),
        },
        "right": {
            "per layer, another search": SHAPE_BY_HAND,
            "another seed": shape(("seed = 1", "seed = 7")),
            "padded to a tile": shape(('-(-f["words"] // 8) * 8', '-(-f["words"] // 128) * 128')),
        },
    },
}
