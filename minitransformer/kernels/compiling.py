"""Compiling kernels for GPUs that need not be there, and reading what came out.

Triton, with the ptxas that it brings, compiles for any NVIDIA architecture on any Linux machine. So a
kernel's PTX, registers, shared memory and tensor-core instructions can be looked at and tested without a
GPU. Only its speed can't. Compiling happens in a process of its own, because this one may interpret.
"""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from minitransformer.kernels.source_text import kernel_text, plain_function

# Bytes of shared memory that one program may use, by compute capability (CUDA C++ Programming Guide,
# table of technical specifications): 75 Turing, 80 A100, 86 and 89 smaller ones, 90 Hopper, 100 Blackwell.
SHARED_MEMORY_LIMIT = {75: 65_536, 80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448}
TENSOR_MEMORY_COLUMNS = 512  # of Blackwell's tensor memory, for one program
WORKER = Path(__file__).with_name("compile_worker.py")
TENSOR_CORES = re.compile(r"\b(?:wgmma\.mma_async|mma\.sync|tcgen05\.mma)[\w.:]*")
TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float64: "fp64",
    torch.int8: "i8",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.uint8: "u8",
    torch.bool: "i1",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.float8_e5m2: "fp8e5",
}


class CompileError(ValueError):
    """The kernel does not compile; the message says where and why."""


@dataclass(frozen=True)
class Compiled:
    """What a GPU of this architecture would run."""

    name: str
    arch: int  # 90 is compute capability 9.0
    num_warps: int
    num_stages: int
    ttgir: str = field(repr=False)  # Triton's own form, with the layout of every tile
    ptx: str = field(repr=False)  # NVIDIA's portable assembly
    registers: int  # of each thread
    shared_bytes: int  # shared memory of each program
    spilled_bytes: int  # of each thread: values that found no register and live in memory
    tensor_memory_columns: int  # Blackwell only

    @property
    def tensor_core_instructions(self) -> dict[str, int]:
        """The matrix instructions in the PTX, and how often each stands there; empty: no tensor cores."""
        return dict(Counter(TENSOR_CORES.findall(self.ptx)))

    @property
    def fits(self) -> bool:
        """Whether one program finds room on the chip; one that does not can't be launched."""
        limit = SHARED_MEMORY_LIMIT[self.arch]
        return self.shared_bytes <= limit and self.tensor_memory_columns <= TENSOR_MEMORY_COLUMNS


@dataclass(frozen=True)
class Job:
    """One kernel in one configuration for one architecture; `compile_kernel` explains the fields."""

    kernel: Any
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any] = field(default_factory=dict)
    arch: int = 90
    num_warps: int = 4
    num_stages: int = 3
    name: str | None = None

    def as_json(self) -> dict:
        """What the worker needs to know."""
        is_text = isinstance(self.kernel, str)
        return {
            "source": self.kernel if is_text else kernel_text(self.kernel),
            "name": self.name if is_text else plain_function(self.kernel).__name__,
            "signature": dict(self.signature),
            "constexprs": {name: _as_json(value) for name, value in self.constexprs.items()},
            "arch": self.arch,
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
        }


def compile_kernel(
    kernel,
    signature: Mapping[str, str],
    constexprs: Mapping[str, Any] | None = None,
    *,
    arch: int = 90,
    num_warps: int = 4,
    num_stages: int = 3,
    name: str | None = None,
) -> Compiled:
    """Compiles one kernel, with or without a GPU.

    kernel      a function under @triton.jit, also of a notebook; or a source text that defines one
    signature   the type of every argument that is no constexpr: "*bf16" is a pointer, "i32" an integer,
                "fp32" a number. A suffix ":16" promises that it can be divided by 16, as addresses of
                tensors and most strides can: Triton then moves 16 bytes at once. ":1" says that it is 1.
    constexprs  the value of every tl.constexpr argument
    arch        80 for an A100, 90 for an H100 or H200, 100 for a B200
    name        which function of a source text; None: the last kernel in it
    Raises CompileError, with Triton's reason.
    """
    job = Job(kernel, signature, constexprs or {}, arch, num_warps, num_stages, name)
    result = compile_many([job])[0]
    if isinstance(result, CompileError):
        raise result
    return result


def compile_many(jobs: Sequence[Job], *, seconds: float = 300) -> list[Compiled | CompileError]:
    """Compiles many in one process, which is what takes the time to start. One result a job, in order.

    Raises ValueError for an unknown architecture, TimeoutError after `seconds`.
    """
    for job in jobs:
        if job.arch not in SHARED_MEMORY_LIMIT:
            raise ValueError(
                f"arch must be one of {', '.join(map(str, SHARED_MEMORY_LIMIT))}, got {job.arch}"
            )
    command = [sys.executable, str(WORKER)]
    environment = os.environ | {
        "TRITON_INTERPRET": "0",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    given = json.dumps([job.as_json() for job in jobs])
    try:
        run = subprocess.run(
            command,
            input=given,
            env=environment,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"compiling {len(jobs)} kernels was not done after {seconds:.0f} s") from None
    if run.returncode != 0:
        raise RuntimeError(f"the compiling process ended with code {run.returncode}:\n{run.stderr[-2000:]}")
    return [_result(job, found) for job, found in zip(jobs, json.loads(run.stdout), strict=True)]


def job_of_launch(kernel, *args, arch: int = 90, num_warps: int = 4, num_stages: int = 3, **kwargs) -> Job:
    """The job that `kernel[grid](*args, **kwargs)` would compile on a GPU of this architecture.

    Tensors may lie on the device "meta": only dtype and address count, so no memory is needed for large ones.
    """
    function = plain_function(kernel)
    code = function.__code__
    names = code.co_varnames[: code.co_argcount]
    values = dict(zip(names, args, strict=False)) | kwargs
    is_constexpr = {
        name for name, kind in function.__annotations__.items() if kind in (tl.constexpr, "tl.constexpr")
    }
    signature = {name: _type_of(name, value) for name, value in values.items() if name not in is_constexpr}
    constexprs = {name: value for name, value in values.items() if name in is_constexpr}
    return Job(kernel, signature, constexprs, arch, num_warps, num_stages)


def _result(job: Job, found: dict) -> Compiled | CompileError:
    if "error" in found:
        return CompileError(f"{found['name']} does not compile for sm_{job.arch}: {found['error']}")
    return Compiled(arch=job.arch, num_warps=job.num_warps, num_stages=job.num_stages, **found)


def _type_of(name: str, value) -> str:
    """How Triton sees an argument at a launch, in the spelling of `compile_kernel`'s signature."""
    if isinstance(value, torch.Tensor):
        aligned = value.device.type == "meta" or value.data_ptr() % 16 == 0
        return f"*{TYPES[value.dtype]}" + (":16" if aligned else "")
    if isinstance(value, TensorDescriptor):
        return f"tensordesc<{TYPES[value.base.dtype]}{list(value.block_shape)}>"
    if isinstance(value, bool):
        return "i1"
    if isinstance(value, int):
        width = "i32" if -(2**31) <= value < 2**31 else "i64"
        return width + (":1" if value == 1 else ":16" if value % 16 == 0 else "")
    if isinstance(value, float):
        return "fp32"
    if value is None:
        return "none"
    raise TypeError(f"{name}: a kernel takes tensors and numbers, got {type(value).__name__}")


def _as_json(value):
    value = value.value if isinstance(value, tl.constexpr) else value
    return {"dtype": value.name} if isinstance(value, tl.dtype) else value
