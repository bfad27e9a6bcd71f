"""Tensors within larger buffers full of poison, so that whatever goes past their ends is found.

Around the tensor, and in the gaps that its strides leave, lie NaNs (or a strange number, for whole numbers):
one that is read spoils the result, one that is overwritten is noticed. What runs on them is not known here.
"""

import math
from collections.abc import Sequence

import torch

BORDER = 4096  # elements on each side
# Bit patterns that no computation leaves behind: quiet NaNs with a payload of their own.
PATTERNS = {
    torch.float32: (torch.int32, 0x7FC5A5A5),
    torch.float64: (torch.int64, 0x7FF8A5A5A5A5A5A5),
    torch.float16: (torch.int16, 0x7EA5),
    torch.bfloat16: (torch.int16, 0x7FA5 | 0x40),
    torch.bool: (torch.uint8, 1),
    torch.uint8: (torch.uint8, 0xA5),
    torch.int8: (torch.int8, 0x5A),
    torch.int16: (torch.int16, 0x5A5A),
    torch.int32: (torch.int32, 0x35A5A5A5),
    torch.int64: (torch.int64, 0x35A5A5A5),
}


class Poisoned:
    """`view`: a tensor of `shape` and `strides` (in elements) that holds `values`, or poison without them."""

    def __init__(
        self,
        shape: Sequence[int],
        dtype: torch.dtype,
        strides: Sequence[int] | None = None,
        values: torch.Tensor | None = None,
        device: str = "cpu",
    ):
        shape = tuple(shape)
        strides = contiguous_strides(shape) if strides is None else tuple(strides)
        whole, pattern = PATTERNS[dtype]
        self.buffer = torch.full((span(shape, strides) + 2 * BORDER,), pattern, dtype=whole, device=device)
        self.view = self.buffer.view(dtype).as_strided(shape, strides, BORDER)
        self.pattern = pattern
        if values is not None:
            self.view.copy_(values)
        self._before = self.buffer.clone()
        self._inside = torch.zeros_like(self.buffer, dtype=torch.bool)
        self._inside.as_strided(shape, strides, BORDER).fill_(True)

    def strays(self) -> list[int]:
        """Where poison was overwritten, in elements from the tensor's first; negative before it."""
        changed = (self.buffer != self._before) & ~self._inside
        return (changed.nonzero().flatten() - BORDER).tolist()

    def changed(self) -> bool:
        """Whether the tensor itself was written to."""
        return bool(((self.buffer != self._before) & self._inside).any())

    def unwritten(self) -> torch.Tensor:
        """Indices of the elements that still hold poison. -> [n, dimensions]"""
        bits = self.buffer.as_strided(self.view.shape, self.view.stride(), BORDER)
        return (bits == self.pattern).nonzero()


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides, in elements, of rows one after the other."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def padded_strides(shape: Sequence[int], gap: int) -> tuple[int, ...]:
    """Strides with `gap` unused elements after each row."""
    *outer, last = shape
    return (*(s * (last + gap) for s in contiguous_strides(outer)), 1)


def span(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Elements from the first to the last of a tensor, both included; 0 for an empty one."""
    if 0 in shape:
        return 0
    return 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))


def call_on_poisoned(function, args: list[dict], kwargs: dict) -> dict:
    """{"result": function(*args, **kwargs), "strays": {position: elements outside that were written},
    "launches": accesses of interpreted kernels that went past their tensors, and were kept from it}.

    `args` hold {"values": tensor, "strides": ...}, which becomes a tensor within poison on the device where
    kernels run in this process, or {"plain": anything}.
    """
    from minitransformer.course.memory_trace import guarded_launches
    from minitransformer.kernels.runtime import INTERPRETED

    device = "cpu" if INTERPRETED else "cuda"
    placed = {
        i: Poisoned(a["values"].shape, a["values"].dtype, a["strides"], a["values"], device)
        for i, a in enumerate(args)
        if "values" in a
    }
    given = [placed[i].view if i in placed else a["plain"] for i, a in enumerate(args)]
    with guarded_launches() as launches:
        result = function(*given, **kwargs)
    strays = {i: at for i, tensor in placed.items() if (at := tensor.strays()[:8])}
    return {"result": result, "strays": strays, "launches": launches[:8]}
