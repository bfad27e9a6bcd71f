"""Items of the GPU round for the kernels that are not attention: right first, then fast.

Against the limit and against the best that PyTorch offers: its operator, or torch.compile's fusion of
several. Both are timed in turns, and a ratio above 1 says that our kernel is the faster one.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from benchmarks.graphs import captured
from benchmarks.registry import Bench, item
from benchmarks.report import console
from benchmarks.turns import Ratio, in_turns
from minitransformer.kernels import add_rms_norm, matmul, rms_norm, rope, softmax, swiglu
from minitransformer.kernels.matmul import config_for, splits_for
from minitransformer.kernels.matmul_configs import configs_for
from minitransformer.kernels.splits import sm_count
from minitransformer.kernels.tuning import Config
from minitransformer.layers import apply_rope
from minitransformer.roofline import Cost, dtype_name
from minitransformer.roofline.measure import run_times

LIMITS = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}  # errors that are only rounding
EPS = 1e-5
WAVES_CONFIG = Config.of(8, 3, BLOCK_M=128, BLOCK_N=256, BLOCK_K=64, GROUP_M=8)  # the tile of `waves`


@dataclass(frozen=True)
class RowKernel:
    """A kernel whose time is that of moving its rows, and the same in PyTorch's operators."""

    ours: Callable
    pytorch: Callable
    inputs: Callable  # (rows, columns, options of the tensors) -> the arguments of both
    columns: int  # in a model of about 8 billion parameters


def _add_rms_norm(x, residual, weight):
    total = x + residual
    return F.rms_norm(total, weight.shape, weight, EPS), total


def _rope(x, cos, sin):
    return apply_rope(x.transpose(1, 2), cos, sin).transpose(1, 2)


def _rows(count: int):
    """`count` matrices, and after them a weight for their rows."""
    return lambda rows, columns, like: [
        *(torch.randn(rows, columns, **like) for _ in range(count)),
        torch.randn(columns, **like),
    ]


def _heads(rows: int, columns: int, like: dict) -> list[torch.Tensor]:
    """One sequence of tokens, `columns` in heads of 128 or fewer, and angles in the same format."""
    D = min(columns // 2 * 2, 128)
    angles = torch.randn(rows, D // 2, device=like["device"]).repeat(1, 2)
    return [
        torch.randn(1, rows, columns // D, D, **like),
        angles.cos().to(like["dtype"]),
        angles.sin().to(like["dtype"]),
    ]


ROW_KERNELS = {
    "softmax": RowKernel(softmax, lambda x: x.softmax(-1), lambda *a: _rows(1)(*a)[:1], 4096),
    "rms_norm": RowKernel(
        lambda x, w: rms_norm(x, w, EPS), lambda x, w: F.rms_norm(x, w.shape, w, EPS), _rows(1), 4096
    ),
    "add_rms_norm": RowKernel(lambda x, r, w: add_rms_norm(x, r, w, EPS), _add_rms_norm, _rows(2), 4096),
    "swiglu": RowKernel(swiglu, lambda g, u: F.silu(g) * u, lambda *a: _rows(2)(*a)[:2], 14_336),
    "rope": RowKernel(rope, _rope, _heads, 4096),
}


@item("kernels")
def kernels(bench: Bench) -> list[dict]:
    """Every kernel here against float64, on fresh random numbers, in odd sizes and each format."""
    torch.manual_seed(seed := torch.seed() % 2**31)  # fresh numbers each time, and a way to have them again
    shapes = [(3, 100)] if bench.small else [(77, 1000), (1025, 4098)]
    products = [(5, 33, 70)] if bench.small else [(1, 4096, 4096), (77, 1000, 300), (1025, 999, 2049)]
    rows = []
    for dtype, limit in LIMITS.items():
        like = {"device": bench.device, "dtype": dtype}
        errors = [(name, shape, _row_error(name, shape, like)) for name in ROW_KERNELS for shape in shapes]
        errors += [("matmul", shape, _product_error(*shape, like)) for shape in products]
        for name, shape, error in errors:
            row = {"kernel": name, "shape": "x".join(map(str, shape)), "format": dtype_name(dtype)}
            rows.append(row | {"error": error, "limit": limit, "seed": seed, "ok": error < limit})
    return rows


def _row_error(name: str, shape: tuple[int, int], like: dict) -> float:
    kernel = ROW_KERNELS[name]
    inputs = kernel.inputs(*shape, like)
    return relative_error(kernel.ours(*inputs), kernel.pytorch(*(x.double() for x in inputs)))


def _product_error(M: int, N: int, K: int, like: dict) -> float:
    """In the default configuration: to tune for each of many shapes would take the round's time."""
    a, b = torch.randn(M, K, **like), torch.randn(N, K, **like).T
    return relative_error(matmul(a, b, config=configs_for(M, a.dtype)[0]), a.double() @ b.double())


@item("row_kernels")
def row_kernels(bench: Bench) -> list[dict]:
    """Kernels that memory bounds, at 64 MB and above: against a copy that moves as many bytes."""
    sizes = (0.001,) if bench.small else (64, 256)
    return [_row_timing(name, size, bench) for name in ROW_KERNELS for size in sizes]


def _row_timing(name: str, megabytes: float, bench: Bench) -> dict:
    """One kernel on inputs of so many megabytes each."""
    kernel = ROW_KERNELS[name]
    columns = 64 if bench.small else kernel.columns
    rows = int(megabytes * 2**20) // (columns * bench.dtype.itemsize)
    inputs = kernel.inputs(rows, columns, {"device": bench.device, "dtype": bench.dtype})
    outputs = kernel.ours(*inputs)
    error = relative_error(outputs, kernel.pytorch(*(x.double() for x in inputs)))
    moved = sum(x.nbytes for x in (*inputs, *_several(outputs)))
    timing = against(
        bench, lambda: kernel.ours(*inputs), _library(bench, kernel.pytorch, inputs), copied=moved
    )
    sizes = {"kernel": name, "rows": rows, "columns": columns, "bytes": moved}
    rate = {"bandwidth": moved / timing["measured_s"]}
    return sizes | timing | rate | {"error": error, "ok": error < LIMITS[bench.dtype]}


@item("matmul")
def matmuls(bench: Bench) -> list[dict]:
    """Our matrix product against cuBLAS: square ones, and thin ones as in decode."""
    shapes = [(32, 32, 32), (1, 48, 64)]
    if not bench.small:
        shapes = [(4096,) * 3, (8192,) * 3, *((M, 14_336, 4096) for M in (1, 16, 64, 256))]
    rows = []
    for M, N, K in shapes:
        a, b = _pair(M, N, K, bench)
        config = config_for(a, b)
        splits = splits_for(M, N, K, config, sm_count(bench.device))
        timing = against(bench, lambda a=a, b=b: matmul(a, b), {"torch": lambda a=a, b=b: a @ b})
        cost = Cost(2 * M * N * K, (M * K + K * N + M * N) * bench.dtype.itemsize)
        sizes = {"M": M, "N": N, "K": K, "tile": _tile(config), "splits": splits}
        limit = bench.beside_limit(cost, timing["measured_s"])
        error = _sampled_error(matmul(a, b), a, b)
        rows.append(sizes | timing | limit | {"error": error, "ok": error < LIMITS[bench.dtype]})
    return rows


@item("waves")
def waves(bench: Bench) -> list[dict]:
    """The rate of a matrix product over M, with one tile size: a sawtooth, as waves fill and overflow."""
    config = configs_for(4096, bench.dtype)[0] if bench.small else WAVES_CONFIG
    sms, block_m, block_n = sm_count(bench.device), config["BLOCK_M"], config["BLOCK_N"]
    N, K = (64, 32) if bench.small else (4096, 4096)
    columns = -(-N // block_n)
    rows = []
    for M in (block_m, block_m + 1) if bench.small else _wave_sizes(sms, block_m, columns):
        a, b = _pair(M, N, K, bench)
        ours = lambda a=a, b=b: matmul(a, b, config=config, num_splits=1)  # noqa: E731
        timing = against(bench, ours, {"torch": lambda a=a, b=b: a @ b}, rounds=3)
        tiles = -(-M // block_m) * columns
        sizes = {"M": M, "N": N, "K": K, "block_m": block_m, "block_n": block_n, "sms": sms, "tiles": tiles}
        rate = {
            "flops": 2 * M * N * K / timing["measured_s"],
            "library_flops": 2 * M * N * K / timing["library_s"],
        }
        error = _sampled_error(ours(), a, b)
        correct = {"error": error, "ok": error < LIMITS[bench.dtype]}
        rows.append(sizes | {"waves": -(-tiles // sms)} | timing | rate | correct)
    return rows


def _wave_sizes(sms: int, block_m: int, columns: int) -> list[int]:
    """Every whole row of tiles up to four waves, and one number more where a wave is just full."""
    most = 4 * sms // columns * block_m
    full = [wave * sms // columns * block_m for wave in range(1, 5)]
    return sorted({*range(block_m, most + 2 * block_m, block_m), *(M + 1 for M in full)})


def against(
    bench: Bench, ours: Callable, libraries: dict[str, Callable], rounds: int = 7, copied: int | None = None
) -> dict:
    """Ours and every library's way, timed in turns; the columns tell of ours and of the fastest other one.

    copied  None, or how many bytes a copy in the same turns reads and writes together: the yardstick of a
            kernel that moves as many, since a short one has no time for the full bandwidth. No ceiling:
            another mixture of reading and writing can be a little faster
    """
    seconds = 0.001 if bench.small else 0.02

    def timed(run: Callable) -> Callable:
        return lambda: statistics.median(run_times(run, bench.device, seconds))

    runs = {name: captured(run, bench.device) for name, run in ({"ours": ours} | libraries).items()}
    ways = {name: timed(run) for name, run in runs.items()}
    if copied is not None:
        source, target = (torch.empty(copied // 2, dtype=torch.uint8, device=bench.device) for _ in range(2))
        ways["copy"] = timed(lambda: target.copy_(source))  # a graph would hand it to a slower copy engine
    times = in_turns(ways, 3 if bench.small else rounds)
    best = min(libraries, key=lambda name: statistics.median(times[name]))
    ratio = Ratio.of(times[best], times["ours"])
    copy = {}
    if copied is not None:
        share = Ratio.of(times["copy"], times["ours"]).median
        copy = {"copy_s": statistics.median(times["copy"]), "share_of_copy": share}
    return copy | {
        "measured_s": statistics.median(times["ours"]),
        "library": best,
        "library_s": statistics.median(times[best]),
        "times_as_fast": ratio.median,
        "low": ratio.low,
        "high": ratio.high,
    }


def _library(bench: Bench, pytorch: Callable, inputs: list[torch.Tensor]) -> dict[str, Callable]:
    """PyTorch's operators as they are, and on a GPU also as torch.compile fuses them."""
    ways = {"torch": lambda: pytorch(*inputs)}
    if bench.small:
        return ways
    compiled = torch.compile(pytorch, dynamic=False)
    try:
        compiled(*inputs)
    except Exception as error:  # of many kinds: a missing C compiler, a version that does not know the GPU
        console.print(f"torch.compile does not work here: {type(error).__name__}: {error}")
        return ways
    return ways | {"torch.compile": lambda: compiled(*inputs)}


def _pair(M: int, N: int, K: int, bench: Bench) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations [M, K], and a weight [N, K] as [K, N], which is how linear layers keep it."""
    like = {"device": bench.device, "dtype": bench.dtype}
    return torch.randn(M, K, **like), torch.randn(N, K, **like).T


def _tile(config: Config) -> str:
    return (
        "x".join(str(config[f"BLOCK_{side}"]) for side in "MNK")
        + f" {config.num_warps}w {config.num_stages}s"
        + " tma" * config.tma
    )


def _several(outputs) -> tuple[torch.Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def relative_error(outputs, exact) -> float:
    """The norm of the difference over the norm of the float64 reference; of several outputs the largest."""
    pairs = zip(_several(outputs), _several(exact), strict=True)
    return max(((out.double() - want).norm() / want.norm()).item() for out, want in pairs)


def _sampled_error(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> float:
    """The same for a product, on up to 128 of its rows and always the last: all would take gigabytes."""
    rows = torch.randint(0, len(a), (128,), device=a.device)
    rows[-1] = len(a) - 1
    return relative_error(out[rows], a[rows].double() @ b.double())
