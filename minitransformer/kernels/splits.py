"""Into how many parts to split the keys of a decode step: a model of which multiprocessors have work.

One query a sequence makes batch * key/value heads programs, often far fewer than a GPU has streaming
multiprocessors (SMs). Splitting the keys makes more programs out of each (Flash-Decoding, Dao et al. 2023,
pytorch.org/blog/flash-decoding), at the price of partial results that a second kernel merges.

The model counts steps: one program reads one block of keys and values in one step, an SM runs one program
at a time, and the SMs start their next programs together, in waves. It knows neither clock rates nor
memory, which all SMs share: a GPU whose memory is busy gains nothing from the last idle SMs.

An SM that has shared memory and registers for several small programs runs them side by side. Then a wave is
as many programs as there are places, and `places` counts them. The model is rougher there: programs that have
an SM for themselves read faster than those that share one, and it takes all for equal.
"""

from dataclasses import dataclass
from functools import cache, lru_cache

import torch

MOST_SPLITS = 128  # more only add partial results: 128 splits of one program occupy nearly every SM
WARPS = 16  # that an SM has registers for, where a thread takes 128 of them: about what these kernels take
RESERVED = 1024  # bytes of shared memory that the system takes for each program
GOOD_ENOUGH = 0.9  # of the best share of busy SMs; the last tenth is not worth further partial results


@dataclass(frozen=True)
class Occupancy:
    """What the model says of one choice."""

    splits: int
    waves: int  # times that an SM begins a program
    steps: int  # blocks of keys from start to end, those of the longest split in each wave
    busy: float  # share of the SMs' steps in which they had a block to read: 1 is the least time possible


def occupancy(programs: int, sms: int, blocks: int, splits: int) -> Occupancy:
    """The model for `programs` that each read `blocks` of keys, in `splits` parts, on `sms` processors.

    The time of a step in seconds is one number for all choices, so times compare as `steps` do.
    Raises ValueError for a number below one.
    """
    if min(programs, sms, blocks, splits) < 1:
        raise ValueError(f"all must be at least 1: {programs=}, {sms=}, {blocks=}, {splits=}")
    waves = -(-programs * splits // sms)
    steps = waves * -(-blocks // splits)
    return Occupancy(splits, waves, steps, busy=programs * blocks / (sms * steps))


@lru_cache(maxsize=1024)  # every layer of a decode step asks the same, and an answer takes 0.2 ms
def choose_num_splits(programs: int, sms: int, blocks: int) -> int:
    """The fewest splits that keep almost as many SMs busy as the best choice does.

    programs  without splitting: batch * key/value heads
    sms       programs that run at the same time, see `places`
    blocks    of keys that each reads: the longest context / BLOCK_S; no more splits than that are of use
    """
    choices = [occupancy(programs, sms, blocks, n) for n in range(1, min(blocks, MOST_SPLITS) + 1)]
    best = max(choice.busy for choice in choices)
    return next(choice.splits for choice in choices if choice.busy >= GOOD_ENOUGH * best)


@cache
def sm_count(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU; 1 for a CPU, where the interpreter runs one program at a time."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


@cache
def places(device: torch.device, shared_bytes: int, num_warps: int) -> int:
    """Programs that a GPU runs at the same time, each of so much shared memory and so many warps.

    At least one an SM: whether a program fits at all is for its launch to say. 1 for a CPU.
    """
    if device.type != "cuda":
        return 1
    room = torch.cuda.get_device_properties(device).shared_memory_per_multiprocessor
    an_sm = min(room // (shared_bytes + RESERVED), WARPS // num_warps)
    return sm_count(device) * max(an_sm, 1)
