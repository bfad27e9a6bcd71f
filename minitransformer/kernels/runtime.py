"""How kernels run here, and the checks that every wrapper makes before it launches one.

On a machine with a CUDA GPU Triton compiles kernels for it. Without one its interpreter runs them: the
same source, program by program, on the CPU. Triton settles which of the two while it is being imported, so
it is decided here, before this package imports it. The variable TRITON_INTERPRET overrules the choice.

This file knows no kernel. The interpreter computes bfloat16 wrongly without a word, so kernels turn what
they load into float32: by `.to(tl.float32)`, or by `dot_operand` where a GPU should keep 16 bits.
"""

import os
import sys
from collections.abc import Sequence

import torch

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def choose_interpreter() -> bool:
    """Whether kernels are to be interpreted; sets TRITON_INTERPRET where it is unset and no GPU is there.

    Raises RuntimeError where Triton was already imported the other way.
    """
    if "TRITON_INTERPRET" in os.environ:
        return os.environ["TRITON_INTERPRET"].lower() in ("1", "true", "yes", "on", "y")
    if torch.cuda.is_available():
        return False
    if "triton" in sys.modules:
        raise RuntimeError(
            "triton was imported before minitransformer.kernels, and there is no GPU: its interpreter has to "
            "be chosen first. Import minitransformer.kernels before triton, or set TRITON_INTERPRET=1"
        )
    os.environ["TRITON_INTERPRET"] = "1"
    return True


INTERPRETED = choose_interpreter()

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError(
        "minitransformer.kernels needs Triton, which pip installs on Linux only: run this on Linux, or use "
        "attention='reference' or 'sdpa'"
    ) from error

UPCAST = tl.constexpr(INTERPRETED)  # compiled code never upcasts, see compiling.py


@triton.jit
def dot_operand(x):
    """A loaded tile as `tl.dot` should get it: as it is on a GPU, in float32 when interpreting."""
    return x.to(tl.float32) if UPCAST else x


def require_tensors(**tensors: torch.Tensor):
    """Raises unless all are tensors on one device where kernels can run here."""
    for name, x in tensors.items():
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    (first, x), *others = tensors.items()
    for name, y in others:
        if y.device != x.device:
            raise ValueError(
                f"all tensors must be on one device: {first} is on {x.device}, {name} on {y.device}"
            )
    wanted = "cpu" if INTERPRETED else "cuda"
    if x.device.type not in (wanted, "meta"):
        means = "are interpreted" if INTERPRETED else "are compiled for the GPU"
        raise ValueError(f"kernels {means} in this process: {first} must be on {wanted}, got {x.device}")
    if x.device.type == "cuda" and x.device.index != (current := torch.cuda.current_device()):
        raise ValueError(
            f"kernels run on the current GPU, cuda:{current}, but {first} is on {x.device}: "
            f"call torch.cuda.set_device({x.device.index}) first"
        )


def require_dtype(dtypes: Sequence[torch.dtype] = FLOATS, **tensors: torch.Tensor):
    """Raises unless all tensors have one dtype, and it is one of `dtypes`."""
    (first, x), *others = tensors.items()
    if x.dtype not in dtypes:
        raise TypeError(f"{first} must be {_words(dtypes)}, got {_words([x.dtype])}")
    for name, y in others:
        if y.dtype != x.dtype:
            raise TypeError(f"{name} must have {first}'s dtype {_words([x.dtype])}, got {_words([y.dtype])}")


def require_shape(name: str, x: torch.Tensor, *shape: int | str):
    """Raises unless x has this shape. A letter or word stands for any size: ("q", q, "B", 8, "D")."""
    fits = x.dim() == len(shape)
    fits = fits and all(
        isinstance(want, str) or have == want for have, want in zip(x.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join(map(str, shape))
        raise ValueError(f"{name} must have shape [{wanted}], got {list(x.shape)}")


def require_last_contiguous(**tensors: torch.Tensor):
    """Raises unless neighbours in the last dimension are neighbours in memory; other strides are free."""
    for name, x in tensors.items():
        if x.dim() and x.shape[-1] > 1 and x.stride(-1) != 1:
            raise ValueError(
                f"{name}'s last dimension must be contiguous (stride 1), got stride {x.stride(-1)} of "
                f"{tuple(x.stride())}: call {name}.contiguous()"
            )


def as_rows(name: str, x: torch.Tensor) -> torch.Tensor:
    """x [..., N] as rows [M, N] of one stride, without a copy; raises where its strides allow none."""
    if x.dim() == 0:
        raise ValueError(f"{name} must have at least one dimension, got a single number")
    require_last_contiguous(**{name: x})
    try:
        return x.view(-1, x.shape[-1]) if x.numel() else x.reshape(0, x.shape[-1])
    except RuntimeError:
        raise ValueError(
            f"{name} of shape {list(x.shape)} and strides {tuple(x.stride())} has no rows of one stride: "
            f"call {name}.contiguous()"
        ) from None


def warps_for(elements: int) -> int:
    """Warps for a program that holds so many elements: 16 a thread, between 1 and 16 warps."""
    return min(max(triton.next_power_of_2(elements) // 512, 1), 16)


def _words(dtypes: Sequence[torch.dtype]) -> str:
    return " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
