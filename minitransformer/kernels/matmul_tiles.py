"""Grouped ordering: which tile of a product a program computes.

Programs with neighbouring numbers run at the same time. Numbered row by row they would share a few rows of a
and need all of b; numbered through groups of GROUP_M rows of tiles, column by column, they need few of
either, and the L2 cache serves most of their loads. (Triton's matmul tutorial.)
"""

import triton
import triton.language as tl


@triton.jit
def tile_of_program(program, rows_of_tiles, columns_of_tiles, GROUP_M: tl.constexpr):
    """Row and column of a program's tile, in grouped ordering."""
    programs_of_group = GROUP_M * columns_of_tiles
    group = program // programs_of_group
    first = group * GROUP_M
    height = tl.minimum(rows_of_tiles - first, GROUP_M)  # the last group may be lower
    within = program % programs_of_group
    return first + within % height, within // height
