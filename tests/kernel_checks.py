"""What the tests of all kernels share: fresh random inputs, errors against float64, poisoned borders, and
the launches that a wrapper makes, to compile them for GPUs that are not there."""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import torch
from triton.runtime.jit import KernelInterface

from minitransformer.kernels.compiling import Compiled, Job, compile_many, job_of_launch
from minitransformer.kernels.runtime import INTERPRETED

DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
FLOATS = [torch.float32, torch.bfloat16, torch.float16]
ARCHS = (80, 90, 100)
# Norm of the error over norm of the reference. The interpreter cuts float32 off to bfloat16 where a GPU
# rounds, which doubles the error of a store: about 4e-3.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
BORDER = 4096  # elements around a poisoned tensor
SENTINEL = 77.0  # a number that every format holds exactly


def fresh_seed() -> int:
    """Seeds torch anew and prints the seed, so that a failure can be had again."""
    seed = torch.seed() % 2**31
    torch.manual_seed(seed)
    print(f"seed {seed}")
    return seed


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Random normal numbers where kernels run here."""
    return torch.randn(*shape).to(DEVICE, dtype)


def error(out: torch.Tensor, reference: torch.Tensor) -> float:
    """Norm of the difference over the norm of the reference, in float64; nan where out has a nan."""
    out, reference = out.double().cpu(), reference.double().cpu()
    assert out.shape == reference.shape, f"shape {list(out.shape)}, expected {list(reference.shape)}"
    return ((out - reference).norm() / reference.norm()).item()


def assert_close(out: torch.Tensor, reference: torch.Tensor, factor: float = 1.0):
    """Fails where the error is more than rounding to out's dtype explains, times `factor`.

    Near zero a format has a smallest step, which no tolerance in proportion covers: it is allowed too.
    """
    limits = torch.finfo(out.dtype)
    step = limits.smallest_normal * limits.eps * out.numel() ** 0.5 / reference.double().norm().item()
    allowed, found = factor * TOLERANCE[out.dtype] + step, error(out, reference)
    assert found <= allowed, f"error {found:.1e}, allowed {allowed:.1e} in {out.dtype}"


def poisoned(x: torch.Tensor) -> torch.Tensor:
    """The same numbers, with nan before and behind them in memory and in the gaps between its rows."""
    size = 1 + sum((n - 1) * abs(step) for n, step in zip(x.shape, x.stride(), strict=True))
    buffer = torch.full((size + 2 * BORDER,), torch.nan).to(x.device, x.dtype)
    inside = buffer.as_strided(x.shape, x.stride(), BORDER)
    return inside.copy_(x)


def apart(x: torch.Tensor, gap: int = 3) -> torch.Tensor:
    """The same numbers with rows that do not follow each other: `gap` elements of nan in between."""
    wide = torch.full((*x.shape[:-1], x.shape[-1] + gap), torch.nan).to(x.device, x.dtype)
    wide[..., : x.shape[-1]] = x
    return wide[..., : x.shape[-1]]


@contextmanager
def guarded_outputs():
    """Lets torch.empty give memory between guards, filled with nan, and fails where a guard was written."""
    guarded, empty = [], torch.empty

    def guarded_empty(*shape, **options):
        x = empty(*shape, **options)
        if not x.dtype.is_floating_point or x.device.type == "meta":
            return x
        buffer = torch.full((x.numel() + 2 * BORDER,), SENTINEL, dtype=x.dtype, device=x.device)
        guarded.append((buffer, x.numel()))
        buffer[BORDER : BORDER + x.numel()] = torch.nan
        return buffer[BORDER : BORDER + x.numel()].view(x.shape)

    with mock.patch("torch.empty", guarded_empty), mock.patch("torch.empty_like", _not_guarded):
        yield
    assert guarded, "nothing was allocated through torch.empty"
    for buffer, count in guarded:
        sides = buffer[:BORDER], buffer[BORDER + count :]
        assert all((side == SENTINEL).all() for side in sides), "written outside an output"


def check_borders(function: Callable, *inputs, **options) -> torch.Tensor:
    """Runs a wrapper on poisoned inputs and guarded outputs; the result must be free of nan."""
    inputs = [poisoned(x) if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in inputs]
    with guarded_outputs():
        out = function(*inputs, **options)
    for part in out if isinstance(out, tuple) else (out,):
        assert not part.isnan().any(), "it read outside an input, or left a part of its output unwritten"
    return out


@dataclass(frozen=True)
class Launch:
    """One launch that a wrapper made: kernel[grid](*args, **kwargs)."""

    kernel: object
    grid: tuple
    args: tuple
    kwargs: dict

    def job(self, arch: int) -> Job:
        return job_of_launch(self.kernel, *self.args, arch=arch, **self.kwargs)


@contextmanager
def recorded_launches():
    """Kernels are not run but noted: a list of `Launch`. Tensors on "meta" make large shapes free."""
    launches: list[Launch] = []

    def record(kernel, grid):
        return lambda *args, **kwargs: launches.append(Launch(kernel, grid, args, kwargs))

    with mock.patch.object(KernelInterface, "__getitem__", record):
        yield launches


def compile_launches(launches: list[Launch], archs=ARCHS) -> list[Compiled]:
    """Compiles every launch for every architecture; fails with words where one does not compile or fit."""
    jobs = [launch.job(arch) for launch in launches for arch in archs]
    results = compile_many(jobs)
    wrong = [r for r in results if not isinstance(r, Compiled)]
    assert not wrong, "\n".join(map(str, wrong))
    large = [r for r in results if not r.fits]
    assert not large, f"too much shared memory: {large}"
    return results


def assert_no_spills(compiled: list[Compiled]):
    """Fails with the kernels that keep values in memory because registers were too few."""
    assert not [c for c in compiled if c.spilled_bytes], [c for c in compiled if c.spilled_bytes]


def _not_guarded(*args, **kwargs):
    raise AssertionError("wrappers allocate with torch.empty, which tests can guard, not torch.empty_like")
