"""Peak memory of decode, in a process of its own: python -m benchmarks.memory BATCH DTYPE PROMPT NEW

Prints one line of JSON. The kernel's own count of resident memory (Linux): what it is before the model
is made is the price of Python and PyTorch; the peak is taken over the decode steps alone.
"""

import ctypes
import json
import subprocess
import sys

import torch

from benchmarks.opponent import MODEL
from minitransformer import KVCache, Transformer, decode, prefill

MB = 2**20
ALLOWED = 64 * MB  # beyond weights and cache


def decode_memory(batch_size: int, dtype: str, prompt_len: int, new_tokens: int) -> dict | None:
    """Bytes of weights, of the cache, and of decode's peak above an empty process; None if not on Linux."""
    if not sys.platform.startswith("linux"):
        return None
    arguments = [str(value) for value in (batch_size, dtype, prompt_len, new_tokens)]
    command = [sys.executable, "-m", "benchmarks.memory", *arguments]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1])


def measure(batch_size: int, dtype: torch.dtype, prompt_len: int, new_tokens: int) -> dict:
    """The same in this process, which should have done nothing else before."""
    torch.randn(64, 64) @ torch.randn(64, 64)  # the thread pool and the libraries are not the model's
    empty = resident("VmRSS")
    model = Transformer(MODEL).to(dtype).eval()
    cache = KVCache(MODEL, batch_size, prompt_len + new_tokens, dtype)
    ids = torch.randint(0, MODEL.vocab_size, (batch_size, prompt_len))
    prefill(model, ids, cache, chunk_size=32)
    _reset_peak()
    for _ in range(new_tokens):
        decode(model, ids[:, :1], cache)
    weights = sum(weight.nbytes for weight in model.parameters())
    return {"weights": weights, "cache": cache.nbytes, "peak": resident("VmHWM") - empty}


def _reset_peak():
    """Gives freed memory back and starts a new peak (Linux 4.0 and later)."""
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def resident(field: str) -> int:
    """Bytes of a field of the kernel's own count (Linux): "VmRSS" now, "VmHWM" at the peak."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))


if __name__ == "__main__":
    batch, name, prompt, new = sys.argv[1:]
    print(json.dumps(measure(int(batch), getattr(torch, name), int(prompt), int(new))))
