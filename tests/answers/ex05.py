"""Answers to exercise 05 that are wrong in ways that people really write, and other right ones.

Most are the solution with a small change (edits.py).
"""

from answers.edits import Solution

SOLUTION = Solution("05_triton_first_kernels")
nbytes = SOLUTION.edits("bytes-answer")
softmax = SOLUTION.edits("softmax-answer")
fused = SOLUTION.edits("fused-answer")
columns = SOLUTION.edits("columns-answer")
swiglu = SOLUTION.edits("swiglu-answer")
fusions = SOLUTION.edits("fusions-answer")


SOFTMAX_LOAD = 'mask=(cols < N) & (cols < length), other=-float("inf"))'
TILE = "at = (start + rows)[:, None] * x_stride + cols[None, :]"
ONE_COLUMN_AT_A_TIME = """
@triton.jit
def column_max_kernel(x_ptr, out_ptr, x_stride, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    for j in range(BLOCK_N):
        col = tl.program_id(0) * BLOCK_N + j
        largest = -float("inf")
        for start in range(0, M, BLOCK_M):
            rows = start + tl.arange(0, BLOCK_M)
            x = tl.load(x_ptr + rows * x_stride + col, mask=(rows < M) & (col < N), other=-float("inf"))
            largest = tl.maximum(largest, tl.max(x, axis=0))
        tl.store(out_ptr + col, largest, mask=col < N)
"""
ROW_BY_ROW = """
@triton.jit
def column_max_kernel(x_ptr, out_ptr, x_stride, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    cols = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    largest = tl.full([BLOCK_N], -float("inf"), tl.float32)
    for row in range(M):
        x = tl.load(x_ptr + row * x_stride + cols, mask=cols < N, other=-float("inf")).to(tl.float32)
        largest = tl.maximum(largest, x)
    tl.store(out_ptr + cols, largest, mask=cols < N)
"""
TWICE = """
@triton.jit
def column_max_kernel(x_ptr, out_ptr, x_stride, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    cols = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    largest = tl.full([BLOCK_N], -float("inf"), tl.float32)
    for row in range(M):
        for _ in range(2):
            x = tl.load(x_ptr + row * x_stride + cols, mask=cols < N, other=-float("inf")).to(tl.float32)
            largest = tl.maximum(largest, x)
    tl.store(out_ptr + cols, largest, mask=cols < N)
"""
TORCH_SWIGLU = """
@triton.jit
def swiglu_kernel(gate_ptr, up_ptr, out_ptr, gate_stride, up_stride, N, BLOCK: tl.constexpr):
    tl.store(out_ptr + tl.program_id(0) * N + tl.arange(0, BLOCK), 0.0, mask=tl.arange(0, BLOCK) < N)


def swiglu(gate, up):
    return torch.nn.functional.silu(gate) * up
"""
GIVEN_FAULTS = """
swiglu_kernel, swiglu = broken_swiglu_kernel, broken_swiglu
"""

ANSWERS = {
    "05.bytes": {
        "wrong": {
            "the sum read and written once": nbytes(("5 * one", "4 * one")),
            "the sum not stored": nbytes(("4 * one  #", "3 * one  #")),
            "full bandwidth": nbytes(('f["share"] * f["terabytes"]', 'f["terabytes"]')),
            "one norm a layer": nbytes(('2 * f["layers"]', 'f["layers"]')),
            "in microseconds": nbytes((" / rate / 1e3", " / rate")),
            "in bytes": nbytes((" / 1e6  # MB", "  # MB")),
        },
        "right": {
            "rounded": nbytes(('"unfused_mb": unfused_mb', '"unfused_mb": float(f"{unfused_mb:.3g}")')),
            "by the share saved": nbytes(
                ("(unfused_mb - fused_mb) / rate / 1e3", "unfused_mb / 5 / rate / 1e3"),
            ),
        },
    },
    "05.softmax": {
        "wrong": {
            "no mask on the load": softmax((", " + SOFTMAX_LOAD, ")")),
            "masked lanes are 0": softmax(('other=-float("inf")', "other=0.0")),
            "no other": softmax((', other=-float("inf")', "")),
            "no mask on the store": softmax((", mask=cols < N)", ")")),
            "writes only what counts": softmax(("mask=cols < N)", "mask=cols < length)")),
            "rows without gaps": softmax(("row * x_stride", "row * N")),
            "whole rows": softmax((" & (cols < length)", "")),
            "no maximum": softmax(("x - tl.where(length > 0, largest, 0.0)", "x")),
            "empty rows are NaN": softmax(("tl.where(length > 0, largest, 0.0)", "largest")),
            "divides by zero": softmax(("tl.where(length > 0, total, 1.0)", "total")),
            "sum in bfloat16": softmax(
                ("total = tl.sum(e, axis=0)", "total = tl.sum(e.to(out_ptr.dtype.element_ty), axis=0)")
            ),
            "in PyTorch": "def softmax_kernel(x, lengths):\n    return torch.softmax(x, -1)",
        },
        "right": {
            "with tl.where": softmax(
                (SOFTMAX_LOAD, "mask=cols < N, other=0.0)"),
                (
                    "    x = x.to(tl.float32)\n",
                    '    x = tl.where(cols < length, x.to(tl.float32), -float("inf"))\n',
                ),
            ),
            "zeros written by a mask of values": softmax(
                (
                    "e / tl.where(length > 0, total, 1.0)",
                    "tl.where(cols < length, e / tl.maximum(total, 1e-30), 0.0)",
                )
            ),
            "in powers of two": softmax(
                (
                    "tl.exp(x - tl.where(length > 0, largest, 0.0))",
                    "tl.exp2((x - tl.where(length > 0, largest, 0.0)) * 1.4426950408889634)",
                )
            ),
            "other names": softmax(("x_stride", "row_stride"), ("lengths_ptr", "n_ptr")),
        },
    },
    "05.fused": {
        "wrong": {
            "mean over the block": fused(("/ D + eps", "/ BLOCK + eps")),
            "norm of x alone": fused(
                ("tl.sum(total * total", "tl.sum(x * x"), ("total * scale", "x * scale")
            ),
            "sum not stored": fused(("    tl.store(total_ptr + row * D + cols, total, mask=inside)\n", "")),
            "eps outside the root": fused(
                (
                    "tl.rsqrt(tl.sum(total * total, axis=0) / D + eps)",
                    "1.0 / (tl.sqrt(tl.sum(total * total, axis=0) / D) + eps)",
                )
            ),
            "no weight": fused(("total * scale * weight", "total * scale")),
            "one stride for both": fused(("row * residual_stride", "row * x_stride")),
            "results with gaps": fused(("total_ptr + row * D", "total_ptr + row * x_stride")),
            "no mask": fused(
                (
                    "cols, mask=inside, other=0.0).to(tl.float32)\n    weight",
                    "cols).to(tl.float32)\n    weight",
                )
            ),
            "masked lanes are 1": fused(("other=0.0", "other=1.0")),
            "a tail block dropped": fused(("inside = cols < D", "inside = cols < D // 16 * 16")),
            "sums in bfloat16": fused((".to(tl.float32)", "")),
        },
        "right": {
            "rounded before the norm": fused(
                ("total = x + residual\n", "total = (x + residual).to(total_ptr.dtype.element_ty)\n"),
                ("    scale", "    total = total.to(tl.float32)\n    scale"),
            ),
            "with a quotient": fused(("scale = tl.rsqrt(", "scale = 1.0 / tl.sqrt(")),
            "64-bit rows": fused(("row = tl.program_id(0)", "row = tl.program_id(0).to(tl.int64)")),
        },
    },
    "05.columns": {
        "wrong": {
            "as given": "column_max_kernel = broken_column_max_kernel",
            "wrong stride": columns(("* x_stride", "* N")),
            "masked lanes are 0": columns(('mask=inside, other=-float("inf")', "mask=inside, other=0.0")),
            "column by column": ONE_COLUMN_AT_A_TIME,
            "the last rows dropped": columns(("range(0, M, BLOCK_M)", "range(0, M - BLOCK_M + 1, BLOCK_M)")),
            "everything read twice": TWICE,
            "no mask of columns": columns((" & (cols < N)[None, :]", "")),
            "starts at 0": columns(
                ('tl.full([BLOCK_N], -float("inf"), tl.float32)', "tl.zeros([BLOCK_N], tl.float32)")
            ),
        },
        "right": {
            "row by row": ROW_BY_ROW,
            "a tile of maxima": columns(
                ("largest = tl.full([BLOCK_N]", "largest = tl.full([BLOCK_M, BLOCK_N]"),
                ("largest = tl.maximum(largest, tl.max(x, axis=0))", "largest = tl.maximum(largest, x)"),
                ("cols, largest, mask", "cols, tl.max(largest, axis=0), mask"),
            ),
            "transposed tile": columns(
                (TILE, "at = (start + rows)[None, :] * x_stride + cols[:, None]"),
                (
                    "((start + rows) < M)[:, None] & (cols < N)[None, :]",
                    "((start + rows) < M)[None, :] & (cols < N)[:, None]",
                ),
                ("tl.max(x, axis=0)", "tl.max(x, axis=1)"),
            ),
        },
    },
    "05.swiglu": {
        "wrong": {
            "as given": GIVEN_FAULTS,
            "no mask on up": swiglu(("up_stride + cols, mask=inside)", "up_stride + cols)")),
            "gate's stride for up": swiglu(("row * up_stride", "row * gate_stride")),
            "the tail dropped": swiglu(("triton.cdiv(N, 64)", "N // 64")),
            "rounded up once too often": swiglu(
                (", mask=inside)\n", ")\n"), ("triton.cdiv(N, 64)", "N // 64 + 1")
            ),
            "the wrapper alone is right": TORCH_SWIGLU,
            "sigmoid of up": swiglu(("tl.sigmoid(gate)", "tl.sigmoid(up)")),
            "strides of the wrapper swapped": swiglu(
                ("gate.stride(0), up.stride(0)", "up.stride(0), gate.stride(0)")
            ),
        },
        "right": {
            "another block": swiglu(("triton.cdiv(N, 64)", "triton.cdiv(N, 128)"), ("BLOCK=64", "BLOCK=128")),
            "sigmoid written out": swiglu(("gate * tl.sigmoid(gate)", "gate / (1.0 + tl.exp(-gate))")),
            "grid as a function": swiglu(
                ("grid = (M, triton.cdiv(N, 64))", 'grid = lambda meta: (M, triton.cdiv(N, meta["BLOCK"]))')
            ),
        },
    },
    "05.fusions": {
        "wrong": {
            "launches forgotten": fusions((' + launches * f["launch_us"])', ")")),
            "bytes forgotten": fusions(("passes * numbers * pass_us + ", "")),
            "one layer": fusions(('"rope": (f["layers"]', '"rope": (1')),
            "nothing": fusions(
                (
                    "choose = list(max(affordable, key=lambda names: sum(saved[name] for name in names)))",
                    "choose = []",
                )
            ),
            "too many days": fusions(('<= f["days"]', "<= 99")),
            "four bytes a number": fusions(("pass_us = 2 /", "pass_us = 4 /")),
            "a name unknown": fusions(('{"choose": choose', '{"choose": ["attention"]')),
        },
        "right": {
            "as a set": fusions(('{"choose": choose', '{"choose": set(choose)')),
            "rounded": fusions(('"saved_us": saved_us', '"saved_us": float(f"{saved_us:.3g}")')),
        },
    },
}
