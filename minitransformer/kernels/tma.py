"""Tiles through the tensor memory accelerator (TMA), the copy engine that NVIDIA GPUs have from Hopper on.

A kernel with pointers computes an address for every few elements of a tile and asks for each, which takes
registers and instructions of all its threads. A GPU with a TMA is told once, in a descriptor, where a tensor
lies, its shape, its strides and the shape of a tile; then one thread asks for a tile by its coordinates and
the engine copies it to shared memory, with zeros where the tensor has ended. No mask on a load, no stride and
no 64-bit offset is left in the kernel. (CUDA C++ Programming Guide, section on tensor memory access.)

The price is a descriptor for each tensor, made at every launch, and what the engine can read: neighbours of
the last dimension next to each other, all else at distances of whole 16 bytes. Other tensors, and older GPUs,
take the kernels with pointers.
"""

from collections.abc import Sequence
from functools import cache

import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from minitransformer.kernels.runtime import INTERPRETED

ALIGNMENT = 16  # bytes: of addresses and of every stride but the last


@cache
def has_tma(device: torch.device) -> bool:
    """Whether a kernel on this device may be given tiles by one. False where kernels are interpreted: a
    configuration with `tma` runs there, too, where one asks for it, but nothing is gained."""
    if INTERPRETED or device.type != "cuda":
        return False
    return torch.cuda.get_device_capability(device) >= (9, 0)


def fits_tma(x: torch.Tensor) -> bool:
    """Whether the engine can read x: see above. A stride of 0 repeats memory, and is not one it takes."""
    steps = [step * x.element_size() for step in x.stride()[:-1]]
    aligned = all(step > 0 and step % ALIGNMENT == 0 for step in steps)
    return x.stride(-1) == 1 and aligned and _address(x) % ALIGNMENT == 0


def descriptor(name: str, x: torch.Tensor, tile: Sequence[int]) -> TensorDescriptor:
    """A descriptor of x for tiles of this shape; ValueError where the engine can't read x."""
    if not fits_tma(x):
        raise ValueError(
            f"{name} can't be read by the tensor memory accelerator: its last dimension must be contiguous "
            f"and all else lie at multiples of {ALIGNMENT} bytes, got strides {x.stride()} of {x.dtype}, "
            f"beginning {_address(x) % ALIGNMENT} bytes behind such a multiple"
        )
    return TensorDescriptor(x, list(x.shape), list(x.stride()), list(tile))


def _address(x: torch.Tensor) -> int:
    return 0 if x.device.type == "meta" else x.data_ptr()
