"""The limits of the device that this runs on, measured: a `Device` like the published ones.

The bandwidth is that of reading (a sum or a matrix-vector product over far more than the caches hold),
because weights and cached keys are read, not copied. Rates are those of the fast tenth of all runs: other
programs only ever slow a run down, so the fast runs are the ones that show the device. How far the
median lay behind is kept as the spread.
"""

import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Sequence

import torch

from minitransformer.roofline.devices import Device
from minitransformer.roofline.dtypes import dtype_name

NOISY = 0.3  # a median run this much slower than a fast one makes a figure doubtful
TORCH = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DTYPES = {"cpu": ("fp32", "bf16"), "cuda": ("bf16", "fp16", "tf32", "fp32", "fp8", "int8")}
SIZES = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192)}  # of square products: the largest may not win
BUFFER_BYTES = {"cpu": 256 * 2**20, "cuda": 2**30}  # several times the last cache


class NoisyMachine(RuntimeWarning):
    """The figures varied too much to be trusted."""


def measure_device(
    device: torch.device | str | None = None,
    *,
    dtypes: Sequence | None = None,
    seconds: float = 4.0,
) -> Device:
    """Measures a CPU or a CUDA GPU in about `seconds` (at most ten with the default).

    dtypes   formats to multiply in; None: those that this kind of device usually runs. A format that
             the device or this PyTorch can't multiply is left out.
    Warns with NoisyMachine where the spread says that something else was running.
    Raises ValueError for another kind of device.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type not in DTYPES:
        raise ValueError(f"can measure {' and '.join(DTYPES)}, not {device.type}")
    wanted = [dtype_name(dtype) for dtype in dtypes or DTYPES[device.type]]
    wanted = [dtype for dtype in wanted if _can_multiply(dtype, device)]
    share = seconds / (len(wanted) + 2)
    rates = {dtype: matmul_rate(dtype, device, share) for dtype in wanted}
    bandwidths = memory_bandwidths(device, 2 * share)
    spread = {name: spread for name, (_, spread) in {**rates, **bandwidths}.items()}
    _warn_if_noisy(spread)
    return Device(
        device_name(device),
        {dtype: rate for dtype, (rate, _) in rates.items()},
        bandwidth=bandwidths["read"][0],
        memory_bytes=_memory_bytes(device),
        source=f"measured with torch {torch.__version__}",
        copy_bandwidth=bandwidths["copy"][0],
        launch_overhead=launch_overhead(device),
        spread=spread,
    )


def matmul_rate(dtype: str, device: torch.device, seconds: float = 1.0) -> tuple[float, float]:
    """FLOP/s of large matrix products in this format, over the best of several sizes; and its spread."""
    sizes, results = SIZES[device.type], []
    for n in sizes:
        times = run_times(matmul(dtype, n, device), device, seconds / len(sizes))
        results.append((2 * n**3 / fast(times), spread(times)))
        if 8 * 3 * times[0] > seconds:  # slow at this format: the next size takes eight times as long
            break
    return max(results)


def memory_bandwidths(device: torch.device, seconds: float = 2.0) -> dict[str, tuple[float, float]]:
    """Bytes/s of "read" and of "copy" (read and written bytes together), each with its spread."""
    side = int((BUFFER_BYTES[device.type] / 4) ** 0.5)
    x = torch.randn(side, device=device).repeat(side, 1)  # random numbers: zeros can be read faster
    y, vector = torch.empty_like(x), torch.randn(side, device=device)
    ways = [
        ("read", x.nbytes, lambda: x @ vector),
        ("read", x.nbytes, lambda: x.sum()),
        ("copy", 2 * x.nbytes, lambda: y.copy_(x)),
    ]
    best: dict[str, tuple[float, float]] = {}
    for name, moved, run in ways:
        times = run_times(run, device, seconds / len(ways))
        best[name] = max(best.get(name, (0, 0)), (moved / fast(times), spread(times)))
    return best


def launch_overhead(device: torch.device, count: int = 200) -> float:
    """Seconds that an operator takes at least, however small: calling it, and on a GPU launching it."""
    x = torch.ones(1, device=device)

    def many():
        for _ in range(count):
            x.add_(1)

    return fast(run_times(many, device, 0.1)) / count


def matmul(dtype: str, n: int, device: torch.device) -> Callable[[], torch.Tensor]:
    """A product of two random n x n matrices in this format, ready to be run."""
    if dtype == "int8":
        a, b = (torch.randint(-127, 128, (n, n), device=device, dtype=torch.int8) for _ in range(2))
        return lambda: torch._int_mm(a, b.T)
    a, b = (torch.randn(n, n, device=device) for _ in range(2))
    if dtype == "fp8":
        a, b = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn)
        one, options = torch.ones((), device=device), {"out_dtype": torch.bfloat16, "use_fast_accum": True}
        return lambda: torch._scaled_mm(a, b.T, scale_a=one, scale_b=one, **options)
    a, b = a.to(TORCH[dtype]), b.to(TORCH[dtype])
    if a.dtype != torch.float32:
        return lambda: a @ b.T
    precision = "high" if dtype == "tf32" else "highest"

    def run():
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(precision)
        try:
            return a @ b.T
        finally:
            torch.set_float32_matmul_precision(before)

    return run


def run_times(run: Callable, device: torch.device, seconds: float) -> list[float]:
    """Seconds that single runs took, after one to warm up: for about `seconds`, at least two."""
    timed = _times_on_gpu if device.type == "cuda" else _times_on_cpu
    timed(run, 1)
    end, times = time.perf_counter() + seconds, []
    while not times or time.perf_counter() < end:
        times += timed(run, 2)
    return times


def fast(times: list[float]) -> float:
    """The time of a fast run: the tenth percentile."""
    return sorted(times)[len(times) // 10]


def spread(times: list[float]) -> float:
    """How much slower the median run was than a fast one: 0.1 is a tenth."""
    return statistics.median(times) / fast(times) - 1


def device_name(device: torch.device) -> str:
    """The name by which a person would know it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{_cpu_name()}, {threads} thread{'s' * (threads > 1)}"


def _times_on_cpu(run: Callable, count: int) -> list[float]:
    times = []
    for _ in range(count):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times


def _times_on_gpu(run: Callable, count: int) -> list[float]:
    """By events on the GPU's own clock, queued in one go: it waits for Python only where a run takes it less
    time than Python takes to ask for it."""
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(8 * count)]
    for start, end in pairs:
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1000 for start, end in pairs]


def _can_multiply(dtype: str, device: torch.device) -> bool:
    if dtype not in {*TORCH, "fp8", "int8"} or (dtype == "tf32" and device.type == "cpu"):
        return False
    try:
        matmul(dtype, 64, device)()
        return True
    except (RuntimeError, NotImplementedError):
        return False


def _warn_if_noisy(spread: dict[str, float]):
    noisy = [f"{name} by {value:.0%}" for name, value in spread.items() if value > NOISY]
    if noisy:
        warnings.warn(
            f"this machine is busy: runs varied ({', '.join(noisy)}), so its limits are uncertain; close "
            "other programs and measure again",
            NoisyMachine,
            stacklevel=3,
        )


def _memory_bytes(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return float("inf")  # Windows: unknown


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as info:
            names = [line.split(":")[1].strip() for line in info if line.startswith("model name")]
        return names[0]
    except (OSError, IndexError):
        return platform.processor() or platform.machine() or "CPU"
