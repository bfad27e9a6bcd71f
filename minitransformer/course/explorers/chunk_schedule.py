"""What a device does when a long prompt arrives while others decode: step by step, priced by `roofline`.

Every step is one pass of the model: a token for each request that decodes, and with them a chunk of the
new prompt until all of it is read (Sarathi-Serve, Agrawal et al. 2024, arXiv 2403.02310). Kept simple: the
newcomer arrives as a step ends, nobody else comes or goes, and the others' contexts stay as long as they are.
"""

from dataclasses import dataclass
from functools import cache, cached_property

from minitransformer.config import ModelConfig
from minitransformer.course.tables import number
from minitransformer.roofline import Device, kv_bytes_per_token, prefill_operators, weight_bytes


@dataclass(frozen=True)
class Load:
    """A device that decodes for `others` requests of `context` tokens each, and a newcomer's `prompt` tokens.

    Weights, cache and arithmetic are in the device's usual number format.
    """

    config: ModelConfig
    device: Device
    prompt: int
    others: int
    context: int

    def require_fits(self):
        """Raises ValueError, with the numbers, where weights and cache are larger than the memory."""
        dtype, tokens = self.device.default_dtype, self.others * self.context + self.prompt
        weights, cached = (
            weight_bytes(self.config, dtype),
            tokens * kv_bytes_per_token(self.config, dtype),
        )
        if weights + cached > self.device.memory_bytes:
            raise ValueError(
                f"{number(weights, 'B')} of weights and {number(cached, 'B')} of cache do not fit into the "
                f"{number(self.device.memory_bytes, 'B')} of {self.device.name}: take more chips"
            )


@dataclass(frozen=True)
class Step:
    """One pass: from `start` to `end` (s after the arrival), with `chunk` tokens of the newcomer's prompt."""

    start: float
    end: float
    chunk: int

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass(frozen=True)
class Timeline:
    """The steps that read the prompt, and how long a step takes before and after them."""

    steps: tuple[Step, ...]
    before: float
    after: float

    @property
    def ttft(self) -> float:
        """Seconds from the newcomer's arrival to its first token, which the last chunk gives."""
        return self.steps[-1].end

    @cached_property
    def longest(self) -> Step:
        """The step that the others wait for longest."""
        return max(self.steps, key=lambda step: step.seconds)

    @property
    def longest_gap(self) -> float:
        """Seconds between two tokens of the others at worst: they get one a step."""
        return self.longest.seconds


def step_seconds(load: Load, chunk: int, read: int, decoding: int | None = None) -> float:
    """The least time of one pass: `chunk` tokens behind `read` ones, and a token for each that decodes.

    Linear layers see all tokens of the pass together and read the weights once. Operators wait for one
    another, so each takes its own roofline time, and the times add up.
    """
    decoding = load.others if decoding is None else decoding
    new, past = [1] * decoding, [load.context] * decoding
    if chunk:
        new, past = [*new, chunk], [*past, read]
    dtype = load.device.default_dtype
    operators = prefill_operators(load.config, len(new), new, dtype, cached_len=past)
    return sum(load.device.time(cost, dtype) for cost in operators.values())


@cache
def timeline(load: Load, chunk_size: int) -> Timeline:
    """What happens when the prompt is read `chunk_size` tokens a step.

    Raises ValueError for sizes below one, and for a load that the device has no memory for.
    """
    for name, size in [("chunk_size", chunk_size), ("prompt", load.prompt), ("others", load.others)]:
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    load.require_fits()
    steps, now = [], 0.0
    for read in range(0, load.prompt, chunk_size):
        chunk = min(chunk_size, load.prompt - read)
        end = now + step_seconds(load, chunk, read)
        steps.append(Step(now, end, chunk))
        now = end
    return Timeline(tuple(steps), step_seconds(load, 0, 0), step_seconds(load, 0, 0, load.others + 1))


def chunk_sizes(prompt: int, least: int = 64) -> list[int]:
    """Powers of two from `least` up, and the whole prompt."""
    sizes = [least]
    while 2 * sizes[-1] < prompt:
        sizes.append(2 * sizes[-1])
    return [n for n in sizes if n < prompt] + [prompt]
