"""Runs the checked source of a kernel on poisoned tensors, in a process apart, and says what became of them.

    run(source, grid, {"x": x, "out": Output((7, 70)), "stride": 70, "N": 70, "BLOCK": 128})

The interpreter runs it, or on request a CUDA GPU. Says what happened, judges nothing.
"""

import atexit
import linecache
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from minitransformer.course.kernel_source import KernelSource, checked, read_source
from minitransformer.course.memory_trace import Access, Trace, whole_grid
from minitransformer.course.poisoned import contiguous_strides
from minitransformer.course.wire import Channel, pack, unpack

SECONDS = 8  # of a processor, for one launch
KERNEL_FILE = "<kernel>"  # what a kernel's source is called in the other process
PATIENCE = 60  # seconds of the clock, on a machine under load
START_SECONDS = 300  # for a process to import torch, on a machine under load


@dataclass(frozen=True)
class Input:
    """A tensor for a kernel to read, laid out with `strides` (in elements); rows side by side without them.

    `changes`: the kernel may write to it, and it is one of the results.
    """

    values: torch.Tensor
    strides: Sequence[int] | None = None
    changes: bool = False


@dataclass(frozen=True)
class Output:
    """A tensor for a kernel to write, full of poison at first."""

    shape: Sequence[int]
    dtype: torch.dtype = torch.float32
    strides: Sequence[int] | None = None


@dataclass(frozen=True)
class After:
    """A tensor after a launch. `strays`: elements outside it that were written; `unwritten`: still poison."""

    values: torch.Tensor
    changed: bool
    strays: list[int]
    unwritten: int
    first_unwritten: list[int]


@dataclass(frozen=True)
class Launched:
    """What came of a launch: the tensors by name, accesses outside of them, or the error that ended it."""

    tensors: dict[str, After] = field(default_factory=dict)
    strays: list[dict] = field(default_factory=list)
    error: dict | None = None
    accesses: list[Access] = field(default_factory=list)


def run(
    source: KernelSource,
    grid: Sequence[int],
    args: dict,
    *,
    gpu: bool = False,
    options: dict | None = None,
    keep: bool = False,
) -> Launched:
    """Launches the kernel with `args` by position: tensors, Input, Output, numbers, constexprs.

    A plain tensor is an Input. `options` are num_warps and num_stages, which only a GPU heeds.
    `keep` also returns every access to memory; the interpreter alone knows them.
    """
    result = WORKERS[gpu].do(
        _job(source, grid, args, gpu=gpu, options=(options or {}) if gpu else {}, keep=keep)
    )
    if "error" in result:
        return Launched(error=result["error"])
    tensors = {name: After(**after) for name, after in result["tensors"].items()}
    return Launched(tensors, result["strays"], accesses=[Access(**a) for a in result["accesses"]])


def _job(
    source: KernelSource, grid, args: dict, *, gpu: bool = False, options: dict, keep: bool = False
) -> dict:
    return {
        "text": source.text,
        "kernel": source.name,
        "grid": list(grid),
        "args": {name: _described(value) for name, value in args.items()},
        "options": options,
        "device": "cuda" if gpu else "cpu",
        "keep": keep,
        "seconds": SECONDS,
    }


def trace_apart(kernel, grid, *args, **kwargs) -> Trace:
    """memory_trace.trace for a kernel that is compiled in this process; RuntimeError where it fails."""
    source = checked(read_source(kernel))
    kwargs = {name: value for name, value in kwargs.items() if name in source.parameters}
    named = dict(zip(source.parameters, args, strict=False)) | kwargs
    named = {name: named[name] for name in source.parameters if name in named}
    tensors = {name: value.cpu() for name, value in named.items() if isinstance(value, torch.Tensor)}
    placed = {name: Input(value, value.stride()) for name, value in tensors.items()}
    grid = whole_grid(grid, named)
    result = WORKERS[False].do(_job(source, grid, named | placed, options={}, keep=True))
    if "error" in result:
        raise RuntimeError(f"{source.name} raised {result['error']['type']}: {result['error']['message']}")
    linecache.cache[KERNEL_FILE] = (len(source.text), None, source.text.splitlines(True), KERNEL_FILE)
    return Trace(source.name, grid, tensors, [Access(**access) for access in result["accesses"]])


def _described(value):
    if isinstance(value, torch.Tensor):
        value = Input(value)
    if isinstance(value, Input):
        shape, dtype, values = tuple(value.values.shape), value.values.dtype, value.values
    elif isinstance(value, Output):
        shape, dtype, values = tuple(value.shape), value.dtype, None
    else:
        return value
    strides = contiguous_strides(shape) if value.strides is None else tuple(value.strides)
    return {"shape": shape, "dtype": dtype, "strides": strides, "values": values}


class Worker:
    """One process of triton_worker.py, started at the first job and again after one that hung."""

    def __init__(self, interpret: bool):
        self.interpret = interpret
        self.lock = threading.Lock()
        self.process: subprocess.Popen | None = None

    def start(self):
        """Starts the process, which then imports what it needs while others go on."""
        if self.process is not None:
            return
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "minitransformer.course.triton_worker", str(theirs.fileno())],
                env=self._environment(),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        self.channel = Channel(ours)
        self.fresh = True

    def do(self, job: dict) -> dict:
        """The result of one job; {"error": ...} where it crashed or took too long."""
        with self.lock:
            self.start()
            blobs: list[bytes] = []
            self.channel.connection.settimeout(START_SECONDS if self.fresh else PATIENCE)
            try:
                self.channel.send({"job": pack(job, blobs)}, blobs)
                head, blobs = self.channel.receive()
            except (TimeoutError, EOFError, OSError):
                self.stop()
                return {"error": {"type": "", "message": "it did not come to an end", "line": ""}}
            self.fresh = False
        result = unpack(head["result"], blobs, lambda handle: None)
        if "died" in result:
            message = f"it ended its process (code {result['died']}): too much memory or time, or a crash"
            return {"error": {"type": "", "message": message, "line": ""}}
        return result

    def stop(self):
        if self.process is None:
            return
        self.channel.close()
        self.process.kill()
        self.process.wait()
        self.process = None

    def _environment(self) -> dict[str, str]:
        kept = (
            "PATH",
            "HOME",
            "LANG",
            "LC_ALL",
            "LD_LIBRARY_PATH",
            "CUDA_VISIBLE_DEVICES",
            "TRITON_CACHE_DIR",
        )
        return {name: os.environ[name] for name in kept if name in os.environ} | {
            "TRITON_INTERPRET": "1" if self.interpret else "0",
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "OMP_NUM_THREADS": "1",
        }


WORKERS = {True: Worker(interpret=False), False: Worker(interpret=True)}  # by `gpu`


def start_workers():
    """Starts the processes ahead of the first launch, so that they import while others work."""
    for gpu, worker in WORKERS.items():
        if not gpu or torch.cuda.is_available():
            with worker.lock:
                worker.start()


@atexit.register
def stop_workers():
    """Ends the processes; the next launch starts them again."""
    for worker in WORKERS.values():
        worker.stop()
