"""Choosing among the configurations of a kernel by trying them, where there is a GPU to try them on.

Triton's own autotuner needs a GPU as soon as there are two configurations. This one takes the first, the
default, where kernels are interpreted, and while a CUDA graph is being captured, when nothing else may
run. What was found is kept for the life of the process.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
import triton
from triton.runtime.errors import OutOfResources

from minitransformer.kernels.runtime import INTERPRETED

_found: dict[Hashable, "Config"] = {}


@dataclass(frozen=True)
class Config:
    """One way to launch a kernel: the sizes of its tiles, and the options of the launch."""

    blocks: tuple[tuple[str, int], ...]
    num_warps: int
    num_stages: int
    tma: bool = False  # whether tiles come through the tensor memory accelerator, see tma.py

    @classmethod
    def of(cls, num_warps: int, num_stages: int, *, tma: bool = False, **blocks: int) -> "Config":
        """Config.of(8, 3, BLOCK_M=128, BLOCK_N=256)"""
        return cls(tuple(blocks.items()), num_warps, num_stages, tma)

    def __getitem__(self, name: str) -> int:
        return dict(self.blocks)[name]

    @property
    def kwargs(self) -> dict[str, int]:
        """What a launch takes: kernel[grid](..., **config.kwargs)"""
        return dict(self.blocks) | {"num_warps": self.num_warps, "num_stages": self.num_stages}


def fastest(
    key: tuple[Hashable, ...],
    configs: Sequence[Config],
    run: Callable[[Config], object],
    device: torch.device,
) -> Config:
    """The configuration with which `run(config)` takes the least time on this device.

    key   what the choice depends on: the kernel's name, sizes, dtype. Tried once for each key.
    A configuration that finds no room on this GPU is passed over; RuntimeError if none finds it.
    """
    if INTERPRETED or device.type != "cuda":
        return configs[0]
    key = (torch.cuda.get_device_name(device), *key)
    if key not in _found:
        if torch.cuda.is_current_stream_capturing():
            return configs[0]
        _found[key] = try_all(configs, run, _bench)
    return _found[key]


def try_all(configs: Sequence[Config], run: Callable, bench: Callable) -> Config:
    """The configuration of the least `bench(function)`; those that do not fit the GPU are left out."""
    times = {}
    for config in configs:
        try:
            times[config] = bench(lambda config=config: run(config))
        except OutOfResources:
            continue
    if not times:
        raise RuntimeError(
            f"none of {len(configs)} configurations fits this GPU: {[c.kwargs for c in configs]}"
        )
    return min(times, key=times.get)


def _bench(run: Callable) -> float:
    """Milliseconds of a run. Briefly: somebody waits for the first call of each shape."""
    return triton.testing.do_bench(run, warmup=5, rep=50, return_mode="median")


def bucket(size: int) -> int:
    """Sizes that share a choice: the next power of two. Prompts of many lengths then tune a few times."""
    return triton.next_power_of_2(max(size, 1))
