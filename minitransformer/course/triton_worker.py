"""A process that runs the checked sources of kernels on poisoned tensors, one job after another.

    python -m minitransformer.course.triton_worker FD      (TRITON_INTERPRET says which of the two)

Triton settles while it is imported whether kernels are interpreted or compiled for the GPU, and importing
takes a second; so triton_runner.py keeps one process of each kind, and each job runs in a fork of it, which
may crash or be stopped without harm. Jobs and results pass through a socket. It takes sources that
kernel_source.py has checked and knows nothing of tasks or verdicts.
"""

import contextlib
import linecache
import os
import resource
import socket
import sys
import traceback

import torch

from minitransformer.course.memory_trace import Recorder, in_short
from minitransformer.course.poisoned import Poisoned
from minitransformer.course.wire import Channel, pack, unpack

FILE = "<kernel>"
MAX_MEMORY = 3 * 2**30  # bytes that a job on the CPU may use


def serve(channel: Channel):
    """Forks for each job until the other side is gone."""
    import minitransformer.kernels.runtime  # noqa: F401, which imports triton, before the forks

    while True:
        try:
            head, blobs = channel.receive()
        except (EOFError, OSError):
            return
        pid = os.fork()
        if pid == 0:
            _job(channel, head, blobs)
        _, status = os.waitpid(pid, 0)
        if status:
            channel.send({"result": pack({"died": os.waitstatus_to_exitcode(status)}, [])}, [])


def _job(channel: Channel, head: dict, blobs: list[bytes]):
    """Does one job in a process of its own, and ends it."""
    code = 1
    try:
        job = unpack(head["job"], blobs, lambda handle: None)
        if job["device"] == "cpu":
            resource.setrlimit(resource.RLIMIT_DATA, (MAX_MEMORY, MAX_MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (job["seconds"], job["seconds"]))
        out: list[bytes] = []
        result = pack(run_job(job), out)
        channel.send({"result": result}, out)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def load(text: str, name: str):
    """The kernel of a checked source."""
    linecache.cache[FILE] = (len(text), None, text.splitlines(True), FILE)
    names = {"__name__": "kernel"}
    exec(compile(text, FILE, "exec"), names)
    return names[name]


def run_job(job: dict) -> dict:
    """Launches a kernel on poisoned tensors.

    {"tensors": {name: {values, strays, changed, unwritten}}, "strays": [...]}, or "error" with its words.
    """
    device = job["device"]
    placed = {
        name: Poisoned(a["shape"], a["dtype"], a["strides"], a["values"], device)
        for name, a in job["args"].items()
        if isinstance(a, dict)
    }
    arguments = [placed[name].view if name in placed else value for name, value in job["args"].items()]
    views = {name: tensor.view for name, tensor in placed.items()}
    recorder = Recorder(views, keep=job["keep"]) if device == "cpu" else None
    try:
        with recorder or contextlib.nullcontext():
            load(job["text"], job["kernel"])[tuple(job["grid"])](*arguments, **job["options"])
            if device != "cpu":
                torch.cuda.synchronize()
    except Exception as error:
        return {"error": describe(error)}
    strays = recorder.strays if recorder else []
    return {
        "tensors": {name: _after(tensor) for name, tensor in placed.items()},
        "strays": [in_short(access) for access in strays],
        "accesses": [vars(access) for access in recorder.accesses] if recorder else [],
    }


def _after(tensor: Poisoned) -> dict:
    unwritten = tensor.unwritten()
    return {
        "values": tensor.view.contiguous().cpu(),
        "changed": tensor.changed(),
        "strays": tensor.strays()[:8],
        "unwritten": len(unwritten),
        "first_unwritten": unwritten[0].tolist() if len(unwritten) else [],
    }


def describe(error: BaseException) -> dict:
    """What went wrong in the kernel: the type, the innermost message, and the kernel's line."""
    line = ""
    while error.__cause__ is not None:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == FILE]
        line = frames[-1].line if frames else line
        error = error.__cause__
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == FILE]
    line = frames[-1].line if frames else line
    return {"type": type(error).__name__, "message": str(error)[-600:], "line": (line or "").strip()[:160]}


if __name__ == "__main__":
    connection = socket.socket(fileno=int(sys.argv[1]))
    serve(Channel(connection))
