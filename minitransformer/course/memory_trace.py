"""Which program of a Triton kernel touches which address, in which order: recorded in the interpreter.

`Recorder` listens while kernels run: each load, store or atomic becomes an `Access`, with the elements that
its lanes name, relative to the tensor they belong to. Lanes that reach past every tensor are kept from
doing so, read NaN instead, and are noted. It says what the source asks for; what a GPU merges, caches or
reorders is not known here. `trace` runs one kernel and returns all of it.
"""

import linecache
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch

from minitransformer.course.poisoned import span

MAX_STRAYS = 20  # stray accesses that are kept


@dataclass(frozen=True)
class Access:
    """One load, store or atomic of one program.

    `offsets` are elements from the first of `tensor`, in the shape of the block; `mask` says which lanes
    take part, `outside` which of those lie outside the tensor. `line` is that of the kernel's `file`.
    """

    program: tuple[int, int, int]
    kind: str
    tensor: str
    offsets: np.ndarray
    mask: np.ndarray
    outside: np.ndarray
    itemsize: int
    line: int
    file: str = ""

    @property
    def text(self) -> str:
        """The line of the kernel that asked for it."""
        return linecache.getline(self.file, self.line).strip()

    @property
    def touched(self) -> np.ndarray:
        """Offsets of the lanes that take part and stay inside, in the order of the lanes."""
        return self.offsets[self.mask & ~self.outside]


class Region:
    """The elements of one tensor, as addresses."""

    def __init__(self, name: str, tensor: torch.Tensor):
        self.name, self.itemsize = name, tensor.element_size()
        self.first = tensor.data_ptr()
        storage = tensor.untyped_storage()
        self.low, self.high = storage.data_ptr(), storage.data_ptr() + storage.nbytes()
        size = span(tensor.shape, tensor.stride())
        valid = torch.zeros(max(size, 1), dtype=torch.bool)
        if tensor.numel():
            valid.as_strided(tensor.shape, tensor.stride()).fill_(True)
        self.valid = valid.numpy()

    def offsets(self, addresses: np.ndarray) -> np.ndarray:
        return (addresses.astype(np.int64) - self.first) // self.itemsize

    def holds(self, addresses: np.ndarray) -> np.ndarray:
        at = self.offsets(addresses)
        within = (at >= 0) & (at < len(self.valid))
        return within & self.valid[np.where(within, at, 0)]

    def distance(self, address: int) -> int:
        """Bytes from its storage; 0 within."""
        return max(self.low - address, address - self.high + 1, 0)


@dataclass
class Recorder:
    """Keeps the accesses to `tensors` (by name) while it is entered; with `keep` False only stray ones."""

    tensors: dict[str, torch.Tensor]
    keep: bool = True
    accesses: list[Access] = field(default_factory=list)
    strays: list[Access] = field(default_factory=list)

    def __post_init__(self):
        self.regions = [Region(name, tensor) for name, tensor in self.tensors.items()]

    def __enter__(self) -> "Recorder":
        import triton
        from triton.runtime import interpreter

        self.library = os.path.dirname(triton.__file__)
        self.builder = interpreter.interpreter_builder
        self.handle = interpreter.TensorHandle
        self._plain = {
            name: getattr(self.builder, name) for name in ("create_masked_load", "create_masked_store")
        }
        self._plain |= {
            name: getattr(self.builder, name) for name in ("create_atomic_rmw", "create_atomic_cas")
        }
        for name in self._plain:
            setattr(self.builder, name, getattr(self, name))
        return self

    def __exit__(self, *exc):
        for name in self._plain:
            delattr(self.builder, name)  # the class's own method shows again

    def create_masked_load(self, ptrs, mask, other, *rest):
        allowed, outside = self._note("load", ptrs, mask)
        loaded = self._plain["create_masked_load"](ptrs, allowed, other, *rest)
        if outside.any():
            poison = np.nan if np.issubdtype(loaded.data.dtype, np.floating) else 0
            loaded.data = np.where(outside, poison, loaded.data).astype(loaded.data.dtype)
        return loaded

    def create_masked_store(self, ptrs, value, mask, *rest):
        allowed, _ = self._note("store", ptrs, mask)
        return self._plain["create_masked_store"](ptrs, value, allowed, *rest)

    def create_atomic_rmw(self, op, ptr, val, mask, *rest):
        allowed, _ = self._note("atomic", ptr, mask)
        return self._plain["create_atomic_rmw"](op, ptr, val, allowed, *rest)

    def create_atomic_cas(self, ptr, cmp, val, *rest):
        _, outside = self._note("atomic", ptr, None)
        if outside.any():
            return cmp
        return self._plain["create_atomic_cas"](ptr, cmp, val, *rest)

    def _note(self, kind: str, ptrs, mask):
        """Files one access; returns the mask without the lanes that stray, and those."""
        addresses = np.asarray(ptrs.data)
        active = np.ones(addresses.shape, bool) if mask is None else np.asarray(mask.data, bool)
        active = np.broadcast_to(active, addresses.shape)
        region, inside = self._owner(addresses, active)
        outside = active & ~inside
        file, line = _kernel_line(self.library)
        access = Access(
            program=tuple(int(i) for i in self.builder.grid_idx),
            kind=kind,
            tensor=region.name if region else "",
            offsets=region.offsets(addresses) if region else addresses.astype(np.int64),
            mask=active,
            outside=outside,
            itemsize=region.itemsize if region else 1,
            line=line,
            file=file,
        )
        if outside.any() and len(self.strays) < MAX_STRAYS:
            self.strays.append(access)
        if self.keep:
            self.accesses.append(access)
        if mask is None:
            return None, outside
        return self.handle(active & inside, mask.dtype), outside

    def _owner(self, addresses: np.ndarray, active: np.ndarray):
        """The tensor that most of the lanes belong to, or lie nearest to, and which lanes are inside it."""
        best, inside, most = None, np.zeros(addresses.shape, bool), 0
        for region in self.regions:
            held = region.holds(addresses)
            count = int((held & active).sum())
            if count > most:
                best, inside, most = region, held, count
        if best is None and self.regions and addresses.size:
            lanes = addresses[active] if active.any() else addresses.reshape(-1)
            best = min(self.regions, key=lambda region: region.distance(int(lanes.reshape(-1)[0])))
            inside = best.holds(addresses)
        return best, inside


def _kernel_line(library: str) -> tuple[str, int]:
    """File and line of the kernel that called the interpreter: the first frame outside Triton."""
    frame = sys._getframe(1)
    while frame is not None:
        if not frame.f_code.co_filename.startswith((library, __file__)):
            return frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back
    return "", 0


def in_short(access: Access) -> dict:
    """A stray access as plain data; places are elements from the tensor's first."""
    at = access.offsets[access.outside]
    return {
        "kind": access.kind,
        "tensor": access.tensor,
        "program": list(access.program),
        "count": int(at.size),
        "first": int(at.min()),
        "last": int(at.max()),
        "text": access.text[:160],
    }


@contextmanager
def guarded_launches() -> Iterator[list[dict]]:
    """Keeps every interpreted launch inside the tensors it is given; the list fills with what strayed."""
    from triton.runtime.interpreter import GridExecutor

    strays: list[dict] = []
    plain = GridExecutor.__call__

    def launch(self, *args, **kwargs):
        named = dict(zip(self.arg_names, args, strict=False)) | kwargs
        tensors = {name: value for name, value in named.items() if isinstance(value, torch.Tensor)}
        with Recorder(tensors, keep=False) as recorder:
            plain(self, *args, **kwargs)
        strays.extend(in_short(access) for access in recorder.strays)

    GridExecutor.__call__ = launch
    try:
        yield strays
    finally:
        GridExecutor.__call__ = plain


@dataclass(frozen=True)
class Trace:
    """All accesses of one launch, in order, and the tensors by parameter name."""

    kernel: str
    grid: tuple[int, ...]
    tensors: dict[str, torch.Tensor]
    accesses: list[Access]

    @property
    def programs(self) -> list[tuple[int, int, int]]:
        """In the order in which they ran."""
        return list(dict.fromkeys(a.program for a in self.accesses))


def trace(kernel, grid, *args, **kwargs) -> Trace:
    """Runs kernel[grid](*args, **kwargs) in the interpreter and records what it touches.

    `kernel` is any function under @triton.jit. Where kernels are compiled for a GPU in this process, another
    process interprets it; tensors are then copies, and results don't come back.
    """
    if type(kernel).__name__ != "InterpretedFunction":
        from minitransformer.course.triton_runner import trace_apart

        return trace_apart(kernel, grid, *args, **kwargs)
    named = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
    tensors = {name: value for name, value in named.items() if isinstance(value, torch.Tensor)}
    with Recorder(tensors) as recorder:
        kernel[grid](*args, **kwargs)
    return Trace(kernel.__name__, whole_grid(grid, named), tensors, recorder.accesses)


def whole_grid(grid, named: dict) -> tuple[int, ...]:
    return tuple(grid(named)) if callable(grid) else tuple(grid)


def sectors(access: Access, *, lanes: int = 32, sector: int = 32) -> tuple[int, int]:
    """(32-byte sectors that an access moves, least that its bytes could fill), group by group of 32 lanes.

    A GPU serves a load or store warp by warp and moves whole sectors. Triton lays the lanes of a block along
    the dimension whose neighbours are neighbours in memory, so the better of the two orders counts.
    """
    orders = [(access.offsets, access.mask & ~access.outside)]
    if access.offsets.ndim > 1:
        orders.append(tuple(a.T for a in orders[0]))
    return min(_sectors(a.reshape(-1), b.reshape(-1), access.itemsize, lanes, sector) for a, b in orders)


def _sectors(offsets, active, size: int, lanes: int, sector: int) -> tuple[int, int]:
    moved = least = 0
    for start in range(0, offsets.size, lanes):
        taken = offsets[start : start + lanes][active[start : start + lanes]]
        if taken.size:
            moved += len(np.unique(taken * size // sector))
            least += math.ceil(len(np.unique(taken)) * size / sector)
    return moved, least
