"""Which shapes the tests of attention kernels run in which format: interpreting takes its time."""

import torch


def each_shape_and_each_dtype(shapes: dict[str, tuple]) -> list[tuple[str, torch.dtype]]:
    """Every shape in float32, and each of the 16-bit formats in every other shape, between them all."""
    names = list(shapes)
    cases = [(name, torch.float32) for name in names]
    cases += [(name, torch.bfloat16) for name in names[::2]]
    return cases + [(name, torch.float16) for name in names[1::2]]
