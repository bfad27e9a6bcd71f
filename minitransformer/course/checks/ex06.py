"""Checks of exercise 06, Triton matmul: the tasks in which a kernel is written or mended.

Those on drawn figures, 06.napkin and 06.shape, are in tile_numbers.py.
"""

import re

import torch

from minitransformer.course.checking import expect, task
from minitransformer.course.checks import tile_numbers  # noqa: F401, registers its tasks
from minitransformer.course.checks.triton_checks import (
    Input,
    Output,
    TritonAnswer,
    expect_float32_sums,
    expect_no_spills,
    expect_tensor_cores,
)
from minitransformer.course.poisoned import padded_strides
from minitransformer.roofline.tiles import visiting_order

FROM_A_GPU = 3e-3  # tensor cores may multiply float32 as TF32

# --- 06.order -------------------------------------------------------------------------------------------


@task("06.order", "tiles in groups of columns")
def order(answer, rng):
    kernel = TritonAnswer(answer)
    cases = [(1, 1, 1), (3, 8, 4), (4, 7, 3), (2, 5, 8)]
    cases.append((rng.randint(2, 6), rng.randint(3, 9), rng.randint(2, 5)))
    for rows, columns, group in cases:
        programs = rows * columns
        args = {"out": Output((programs, 2), torch.int32), "rows": rows, "columns": columns, "GROUP_N": group}
        given = f"{rows} rows and {columns} columns of tiles in groups of {group} columns"
        came = [tuple(pair) for pair in kernel.launch((programs,), args, given)["out"].tolist()]
        compare_order(came, rows, columns, group, given)
    compiled = kernel.compiles({"out": Output((64, 2), torch.int32), "rows": 8, "columns": 8, "GROUP_N": 4})
    expect_no_spills(compiled)
    return kernel.note


def in_column_groups(rows: int, columns: int, group: int) -> list[tuple[int, int]]:
    """(row, column) of every program: the mirror image of groups of rows."""
    return [(row, column) for column, row in visiting_order(columns, rows, group)]


def compare_order(came: list, rows: int, columns: int, group: int, given: str):
    right = in_column_groups(rows, columns, group)
    if came == right:
        return
    program = next(i for i, (one, wanted) in enumerate(zip(came, right, strict=True)) if one != wanted)
    slips = [
        (visiting_order(rows, columns, group), "These are groups of rows; asked for are groups of columns."),
        (visiting_order(rows, columns), "This is row by row, without groups."),
        ([(r, c) for c in range(columns) for r in range(rows)], "This is column by column, without groups."),
        (
            _group_by_columns(rows, columns, group),
            "Within a group the tiles go row by row, not column by column.",
        ),
    ]
    cause = next((words for wrong, words in slips if came == wrong), "")
    if not cause and max(column for _, column in came) >= columns:
        cause = "The last group holds only the columns that are left: it may be narrower than the others."
    if not cause and len(set(came)) < len(came):
        cause = "Some tile is computed twice, and another not at all."
    expect(
        False,
        f"For {given}, program {program} should compute the tile at row {right[program][0]}, column "
        f"{right[program][1]}, but row {came[program][0]}, column {came[program][1]} came. {cause}".strip(),
    )


def _group_by_columns(rows: int, columns: int, group: int) -> list[tuple[int, int]]:
    """Groups of columns, each visited column by column."""
    firsts = range(0, columns, group)
    return [
        (r, c) for first in firsts for c in range(first, min(first + group, columns)) for r in range(rows)
    ]


# --- 06.linear ------------------------------------------------------------------------------------------


@task("06.linear", "a linear layer for any shape")
def linear(answer, rng):
    kernel = TritonAnswer(answer)
    shapes = [
        (1, 1, 1, torch.float32),
        (16, 16, 16, torch.float32),
        (5, 40, 19, torch.float32),
        (33, 7, 33, torch.float16),
        (3, 20, 700, torch.float16),
    ]
    for M, N, K, dtype in shapes:
        gap = rng.randint(1, 6) if M > 1 else 0  # between rows
        x, w, bias = rng.randn(M, K, dtype=dtype), rng.randn(N, K, dtype=dtype), 3 * rng.randn(N, dtype=dtype)
        kernel.expect(
            (-(-M // 16), -(-N // 16)),
            linear_args(x, w, bias, gap, 64 if K > 100 else 16),
            {"out": x.double() @ w.double().T + bias.double()},
            f"{M} tokens of {K} numbers to {N} outputs, {str(dtype)[6:]}",
            {"out": linear_slips(x, w, bias, 64 if K > 100 else 16)},
            gpu_tolerance=FROM_A_GPU,
        )
    halves = dict.fromkeys(("x", "w", "bias", "out"), torch.bfloat16)
    wide = linear_args(torch.empty(256, 256), torch.empty(256, 256), torch.empty(256), 0, 64, tile=64)
    compiled = kernel.compiles(wide, dtypes=halves)
    expect_float32_sums(compiled)
    expect_tensor_cores(compiled)
    expect_no_spills(compiled)
    return kernel.note


def linear_args(x, w, bias, gap: int, block_k: int, tile: int = 16) -> dict:
    (M, K), N = x.shape, w.shape[0]
    strides = {
        name: padded_strides(size, gap) for name, size in (("x", (M, K)), ("w", (N, K)), ("out", (M, N)))
    }
    return {
        "x": Input(x, strides["x"]),
        "w": Input(w, strides["w"]),
        "bias": bias,
        "out": Output((M, N), torch.float32, strides["out"]),
        "M": M,
        "N": N,
        "K": K,
        "x_stride": strides["x"][0],
        "w_stride": strides["w"][0],
        "out_stride": strides["out"][0],
        "BLOCK_M": tile,
        "BLOCK_N": tile,
        "BLOCK_K": block_k,
    }


def linear_slips(x, w, bias, block: int) -> list:
    """(wrong result, what was done to get it)"""
    x, w, bias = x.double(), w.double(), bias.double()
    K, whole = x.shape[1], x.shape[1] // block * block
    return [
        (lambda: x @ w.T, "The bias is missing."),
        (lambda: x @ w.T + -(-K // block) * bias, "The bias is added in every step of the loop, not once."),
        (lambda: x[:, :whole] @ w[:, :whole].T + bias, "The last block of K is dropped: round up, and mask."),
        (
            lambda: x[:, -block:] @ w[:, -block:].T + bias,
            "Only the last block of K arrives: is the total kept?",
        ),
    ]


# --- 06.split_k -----------------------------------------------------------------------------------------


@task("06.split_k", "parts that add up")
def split_k(answer, rng):
    pair = isinstance(answer, (tuple, list)) and len(answer) == 2
    expect(pair, "The answer should be a tuple, the kernel and the function that launches it.")
    kernel = TritonAnswer(*answer)
    for M, N, K, splits in [(16, 32, 64, 1), (16, 16, 64, 2), (5, 40, 50, 3), (17, 3, 33, 2), (3, 20, 7, 5)]:
        a, b, out = rng.randn(M, K), rng.randn(K, N), rng.randn(M, N)
        right = a.double() @ b.double()
        given = f"[{M}, {K}] @ [{K}, {N}] in {splits} splits"
        args = {"a": a, "b": b, "out": Input(torch.zeros(M, N), changes=True), "M": M, "N": N, "K": K}
        blocks = {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16, "SPLITS": splits}
        grid = (-(-M // 16), -(-N // 16), splits)
        slips = split_slips(a, b, splits)
        kernel.expect(grid, args | blocks, {"out": right}, given, {"out": slips}, gpu_tolerance=FROM_A_GPU)
        whole_tiles = (M // 16 * 16, N // 16 * 16)
        slips = [
            *slips,
            (
                lambda r=right, o=out: r + o.double(),
                "What lay in `out` before is still in the sum: who clears it?",
            ),
            (
                lambda r=right, o=out, t=whole_tiles: _only_whole_tiles(r, o, t),
                "Tiles at the edges have no program: round the grid up.",
            ),
        ]
        start = f"{given}, `out` holding numbers of somebody else's"
        kernel.expect_wrapper(
            [a, b, splits, out], right, start, slips, tolerance=FROM_A_GPU if kernel.gpu else None
        )
    compiled = kernel.compiles(args | blocks)
    expect_no_spills(compiled)
    expect(
        bool(re.search(r"\b(?:red|atom)\.", compiled.ptx)),
        "One program after another, as the interpreter runs them, the kernel adds up. But on a GPU programs "
        "of other splits load, add and store the same tile at the same time, and overwrite each other's "
        "sums: it takes one operation that does all three, tl.atomic_add.",
    )
    return kernel.note


def split_slips(a, b, splits: int) -> list:
    """(wrong result, what was done to get it)"""
    a, b, K = a.double(), b.double(), a.shape[1]
    part, up = K // splits, -(-K // splits)

    def product(low: int, high: int):
        return a[:, low:high] @ b[low:high]

    def reaching_over():  # a part's last block reads on into the next part
        ends = [(s * up, min(s * up + -(-up // 16) * 16, K)) for s in range(splits)]
        return sum(product(low, high) for low, high in ends)

    return [
        (
            lambda: product((splits - 1) * up, K),
            "Only the last part arrives: each store replaces what was there.",
        ),
        (lambda: product(0, part * splits), "What is left over when K is divided into parts is dropped."),
        (reaching_over, "A part's last block reaches into the next part, whose products then count twice."),
    ]


def _only_whole_tiles(right, out, tiles: tuple[int, int]):
    """Where only whole tiles are computed and the rest of `out` is cleared."""
    result = torch.zeros_like(right)
    result[: tiles[0], : tiles[1]] = right[: tiles[0], : tiles[1]]
    return result
