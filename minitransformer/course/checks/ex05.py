"""Checks of exercise 05, Triton's first kernels: those in which a kernel is written or mended.

Those on drawn figures, 05.bytes and 05.fusions, are in fusion_napkin.py.
"""

import torch

from minitransformer.course.checking import expect, task
from minitransformer.course.checks import fusion_napkin  # noqa: F401, registers its tasks
from minitransformer.course.checks.triton_checks import (
    Input,
    Output,
    TritonAnswer,
    expect_float32_sums,
    expect_no_spills,
)
from minitransformer.course.poisoned import padded_strides

BF16 = torch.bfloat16


def power_of_two(n: int) -> int:
    """The smallest one that is not less."""
    return 1 << (n - 1).bit_length()


# --- 05.softmax -----------------------------------------------------------------------------------------


def row_softmax(x, lengths, *, zeros=False, padded=False):
    """In float64, row by row over its first columns. The options are slips that people make."""
    out = torch.zeros(x.shape, dtype=torch.float64)
    for m, n in enumerate(lengths.tolist()):
        row = x[m].double()
        if padded:  # the whole row, as if it had no length
            n = len(row)
        e = (row[:n] - row[:n].amax()).exp() if n else row[:0]
        more = (-row[:n].amax()).exp() * (power_of_two(len(row)) - n) if zeros and n else 0.0
        out[m, :n] = e / (e.sum() + more)
    return out


@task("05.softmax", "softmax over rows of any length")
def softmax(answer, rng):
    kernel = TritonAnswer(answer)
    cases = [(4, 70, 0, -6), (3, 33, 7, -6), (1, 1, 0, -6), (5, 100, 3, 100), (2, 64, 0, -6)]
    for M, N, gap, shift in cases:
        x = rng.randn(M, N) + shift  # far from 0 on either side, where slips show
        lengths = rng.randint(1, N + 1, M).int()
        lengths[0] = N
        if M > 2:
            lengths[1], lengths[2] = 0, min(1, N)
        strides = padded_strides((M, N), gap)
        args = {
            "x": Input(x, strides),
            "lengths": lengths,
            "out": Output((M, N)),
            "x_stride": strides[0],
            "N": N,
            "BLOCK": power_of_two(N),
        }
        case = (x, lengths)
        likely = [
            (lambda case=case: row_softmax(*case, zeros=True), "Masked lanes take part: load them as -inf."),
            (lambda case=case: row_softmax(*case, padded=True), "Each row ends at its own length."),
        ]
        given = f"rows of {N} columns, {strides[0]} apart, with lengths {lengths.tolist()}"
        kernel.expect(
            (M,), args, {"out": row_softmax(x, lengths)}, given, {"out": likely}, gpu_tolerance=1e-4
        )
    compiled = kernel.compiles(args, dtypes={"x": BF16, "out": BF16})
    expect_float32_sums(compiled, "x in bfloat16")
    return kernel.note


# --- 05.fused -------------------------------------------------------------------------------------------


def add_norm(x, residual, weight, eps, fault=""):
    """(norm, sum) of x + residual in float64; `fault` names a slip."""
    total = x.double() + residual.double()
    taken = x.double() if fault == "norm of x" else total
    D = x.shape[-1]
    mean = taken.square().sum(-1, keepdim=True) / (power_of_two(D) if fault == "block" else D)
    if fault == "mean taken off":
        taken = taken - taken.mean(-1, keepdim=True)
        mean = taken.square().mean(-1, keepdim=True)
    scale = mean.sqrt() + eps if fault == "eps outside" else (mean + eps).sqrt()
    return taken / scale * (1.0 if fault == "no weight" else weight.double()), total


FUSED_FAULTS = {
    "norm of x": "The norm is that of the sum.",
    "block": "The mean is over D numbers; masked lanes are none of them, so BLOCK is no divisor.",
    "mean taken off": "RMSNorm takes no mean off; that would be LayerNorm.",
    "eps outside": "eps belongs under the root.",
    "no weight": "The weight is missing.",
}


@task("05.fused", "residual and RMSNorm in one pass")
def fused(answer, rng):
    kernel = TritonAnswer(answer)
    cases = [(3, 48, 0, 1.0, 1e-6), (2, 100, 4, 0.01, 1e-3), (1, 1, 0, 1.0, 1e-2), (4, 64, 9, 5.0, 1e-5)]
    for M, D, gap, size, eps in cases:
        x, residual, weight = size * rng.randn(M, D), size * rng.randn(M, D), rng.randn(D)
        strides = padded_strides((M, D), gap)
        apart = padded_strides((M, D), gap // 2)
        args = {
            "x": Input(x, strides),
            "residual": Input(residual, apart),
            "weight": weight,
            "out": Output((M, D)),
            "total": Output((M, D)),
            "x_stride": strides[0],
            "residual_stride": apart[0],
            "D": D,
            "eps": eps,
            "BLOCK": power_of_two(D),
        }
        norm, total = add_norm(x, residual, weight, eps)
        likely = [
            (lambda f=fault, case=(x, residual, weight, eps): add_norm(*case, f)[0], why)
            for fault, why in FUSED_FAULTS.items()
        ]
        given = f"{M} rows of {D}, {strides[0]} and {apart[0]} apart, eps={eps:g}"
        wanted = {"total": total, "out": norm}
        kernel.expect((M,), args, wanted, given, {"out": likely}, tolerance=3e-5, gpu_tolerance=1e-4)
    args |= {"D": 4096, "BLOCK": 4096}
    names = ("x", "residual", "weight", "out", "total")
    compiled = kernel.compiles(args, dtypes=dict.fromkeys(names, BF16), num_warps=8)
    expect_float32_sums(compiled, "rows of 4,096 in bfloat16")
    expect_no_spills(compiled, "rows of 4,096 in bfloat16")
    return kernel.note


# --- 05.columns -----------------------------------------------------------------------------------------

MOST_SECTORS = 1.6  # times the least: rows that begin amid a sector cost a little


def column_args(x, strides, block_m: int, block_n: int) -> dict:
    M, N = x.shape
    return {
        "x": Input(x, strides), "out": Output((N,)), "x_stride": strides[0], "M": M, "N": N,
        "BLOCK_M": block_m, "BLOCK_N": block_n,
    }  # fmt: skip


@task("05.columns", "column maxima, eight times too slow")
def columns(answer, rng):
    kernel = TritonAnswer(answer)
    cases = [(40, 70, 2, 16, 32), (16, 32, 0, 16, 32), (5, 9, 3, 4, 8), (1, 1, 0, 2, 2)]
    for M, N, gap, block_m, block_n in cases:
        x = rng.randn(M, N) - 5.0  # hardly any column holds a positive number
        strides = padded_strides((M, N), gap)
        whole = max(M // block_m * block_m, 1)
        likely = [
            (x.double().amax(0).clamp(min=0), "Masked lanes come as 0, and that is larger than these."),
            (x[:whole].double().amax(0), "The last rows are missing."),
        ]
        given = f"x of shape [{M}, {N}], rows {strides[0]} apart, in blocks of {block_m} by {block_n}"
        grid = (-(-N // block_n),)
        args = column_args(x, strides, block_m, block_n)
        kernel.expect(grid, args, {"out": x.double().amax(0)}, given, {"out": likely})
    x = rng.randn(64, 128)
    args = column_args(x, padded_strides((64, 128), 0), 16, 32)
    moved, least = kernel.sectors((4,), args)["x"]
    expect(
        moved <= MOST_SECTORS * least,
        f"The values are right, but reading x of shape [64, 128] moves {moved * 32:,} bytes where "
        f"{least * 32:,} would do, {moved / least:.3g} times as much: neighbouring lanes do not read "
        "neighbouring addresses. A load down one column takes a sector of 32 bytes for each number.",
    )
    again = moved * 32 / (4 * x.numel())
    expect(
        again <= MOST_SECTORS,
        f"The values are right and neighbours read neighbours, but x is read {again:.3g} times over. Each "
        "number is needed once.",
    )
    kernel.compiles(args, dtypes={"x": BF16, "out": BF16})
    return kernel.note


# --- 05.swiglu ------------------------------------------------------------------------------------------


def silu_product(gate, up):
    gate = gate.double()
    return gate * gate.sigmoid() * up.double()


@task("05.swiglu", "a SwiGLU that fails on some shapes")
def swiglu(answer, rng):
    pair = isinstance(answer, (tuple, list)) and len(answer) == 2
    expect(pair, "The answer should be the kernel and its wrapper: (swiglu_kernel, swiglu).")
    kernel = TritonAnswer(*answer)
    cases = [(2, 64, 64, (0, 0)), (3, 70, 32, (2, 6)), (1, 5, 8, (3, 0)), (2, 130, 64, (0, 5))]
    for M, N, block, gaps in cases:
        gate, up = rng.randn(M, N), rng.randn(M, N)
        strides = [padded_strides((M, N), gap) for gap in gaps]
        args = {
            "gate": Input(gate, strides[0]),
            "up": Input(up, strides[1]),
            "out": Output((M, N)),
            "gate_stride": strides[0][0],
            "up_stride": strides[1][0],
            "N": N,
            "BLOCK": block,
        }
        given = f"{M} rows of {N}, gate's {strides[0][0]} apart and up's {strides[1][0]}"
        wanted = silu_product(gate, up)
        grid = (M, -(-N // block))
        kernel.expect(grid, args, {"out": wanted}, given, gpu_tolerance=1e-4)
        tail = "The result has numbers that no program wrote: N // BLOCK leaves the last block out."
        came = [Input(gate, strides[0]), Input(up, strides[1])]
        cut = N // 64 * 64
        likely = [(lambda w=wanted, c=cut: torch.cat((w[:, :c], torch.zeros_like(w[:, c:])), -1), tail)]
        tolerance = 1e-4 if kernel.gpu else None
        kernel.expect_wrapper(came, wanted, given, likely, tolerance=tolerance, dtype=torch.float32)
    kernel.compiles(args, dtypes=dict.fromkeys(("gate", "up", "out"), BF16))
    return kernel.note
