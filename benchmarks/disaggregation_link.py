"""What a transfer between two processes takes: a latency, and bytes over a bandwidth.

The same pair of ends that carries keys and values sends tensors of many sizes, each of which the receiver
acknowledges with a byte. All sizes take turns, so that a moment in which the machine is slow says nothing
about one of them. A line is fitted to every other size, and judged by those in between.
"""

import multiprocessing
import random
import statistics
import time
from dataclasses import asdict, dataclass

import numpy as np
import torch

from minitransformer.disaggregation.messages import Welcome
from minitransformer.disaggregation.pair import RECEIVER, GlooPair, Meeting, join

HOST, SECRET, TIMEOUT_S = "127.0.0.1", b"a benchmark on this machine", 60.0
SMALLEST = 2**16  # bytes; a layer of a short prompt has as many


@dataclass(frozen=True)
class Line:
    """seconds(n) = latency_s + n / bandwidth; `errors` are those of the sizes that it was not fitted to."""

    latency_s: float
    bandwidth: float  # bytes per second
    measured: tuple[tuple[int, float], ...]  # bytes, seconds in the median
    errors: tuple[float, ...]  # relative

    def seconds(self, nbytes: float) -> float:
        return self.latency_s + nbytes / self.bandwidth

    @classmethod
    def through(cls, measured: list[tuple[int, float]]) -> "Line":
        """Least squares of relative errors over every other size, neither number below zero."""
        sizes, seconds = (np.array(column, dtype=float) for column in zip(*measured[::2], strict=True))
        columns = np.stack([np.ones_like(sizes), sizes], axis=1) / seconds[:, None]
        latency, per_byte = np.linalg.lstsq(columns, np.ones_like(sizes), rcond=None)[0]
        if per_byte <= 0:  # more bytes took less time, on a machine that has other things to do
            latency, per_byte = 0.0, columns[:, 1].sum() / (columns[:, 1] ** 2).sum()
        line = cls(max(float(latency), 0.0), 1 / float(per_byte), tuple(measured), ())
        errors = tuple(abs(line.seconds(n) / s - 1) for n, s in measured[1::2])
        return cls(line.latency_s, line.bandwidth, line.measured, errors)

    def as_dict(self) -> dict:
        return asdict(self)


def measure_link(largest: int, rounds: int = 25) -> Line:
    """The line of this machine's link between two processes, from 64 KB to `largest` bytes."""
    sizes = [SMALLEST << i for i in range((largest // SMALLEST).bit_length())]
    meeting, spawn = Meeting(HOST), multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    welcome = meeting.invite()
    sender = spawn.Process(target=_send_all, args=(theirs, asdict(welcome), sizes, rounds), daemon=True)
    sender.start()
    pair = GlooPair(meeting.store, welcome.prefix, RECEIVER, HOST, SECRET, TIMEOUT_S)
    rooms = {size: torch.ones(size, dtype=torch.uint8) for size in sizes}
    for size in _turns(sizes, rounds):
        pair.recv(rooms[size])
        pair.send(rooms[size][:1])
    seconds = ours.recv()
    sender.join()
    return Line.through(list(zip(sizes, seconds, strict=True)))


def _turns(sizes: list[int], rounds: int) -> list[int]:
    """Every size once a round, in random order: the same for both sides."""
    draw = random.Random(0)
    return [size for _ in range(rounds) for size in draw.sample(sizes, len(sizes))]


def _send_all(pipe, welcome: dict, sizes: list[int], rounds: int):
    """The other process: median seconds of each size from the send to its acknowledgement."""
    pair = join(GlooPair, Welcome(**welcome), HOST, SECRET, TIMEOUT_S)
    tensors = {size: torch.randint(256, (size,), dtype=torch.uint8) for size in sizes}
    ack, times = torch.empty(1, dtype=torch.uint8), {size: [] for size in sizes}
    for size in _turns(sizes, rounds):
        start = time.perf_counter()
        pair.send(tensors[size])
        pair.recv(ack)
        times[size].append(time.perf_counter() - start)
    pipe.send([statistics.median(times[size]) for size in sizes])
