"""Objects that a check can hand to the learner's code by name.

A check may run in another process than the learner's code, and nothing but plain data passes between
them. So a check says `Built("tiny_model", seed=3)`; the learner's side makes the model from the name and
the arguments, and the check makes the same one with `.build()`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from minitransformer.cache import KVCache
from minitransformer.config import ModelConfig
from minitransformer.model import Transformer

BUILDERS: dict[str, Callable] = {}


@dataclass(frozen=True)
class Built:
    """An object described by the name of its builder and keyword arguments (plain data)."""

    name: str
    kwargs: dict = field(default_factory=dict)

    def __init__(self, name: str, **kwargs):
        if name not in BUILDERS:
            raise ValueError(f"no builder is called {name!r}: there are {', '.join(BUILDERS)}")
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "kwargs", kwargs)

    def build(self):
        return BUILDERS[self.name](**self.kwargs)


def builder(function: Callable) -> Callable:
    """Makes `function` known to Built under its own name. It must give the same object every time."""
    BUILDERS[function.__name__] = function
    return function


def tiny_config(**changes) -> ModelConfig:
    """A ModelConfig small enough for a check: 2 layers, 4 query heads, 2 key/value heads of 8."""
    shape = {
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    }
    return ModelConfig(**shape | changes)


@builder
def tiny_model(seed: int = 0, **changes) -> Transformer:
    """A Transformer of `tiny_config(**changes)` with weights drawn from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Transformer(tiny_config(**changes))
        # At their small initial size the weights would leave all logits nearly equal.
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return model.eval().requires_grad_(False)


@builder
def tiny_cache(batch_size: int = 1, max_seq_len: int = 32, **changes) -> KVCache:
    """An empty float32 KVCache for `tiny_model` of the same changes."""
    return KVCache(tiny_config(**changes), batch_size, max_seq_len)


class WatchedCache(KVCache):
    """A KVCache that lists in `steps` how many tokens each pass through the model added."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.steps: list[int] = []

    def advance(self, num_tokens: int):
        super().advance(num_tokens)
        self.steps.append(num_tokens)


@builder
def watched_cache(batch_size: int = 1, max_seq_len: int = 32, **changes) -> WatchedCache:
    """An empty float32 WatchedCache for `tiny_model` of the same changes."""
    return WatchedCache(tiny_config(**changes), batch_size, max_seq_len)


@builder
class Recorder:
    """A callback that keeps what it was called with, one list of arguments a call, in `.calls`."""

    def __init__(self):
        self.calls: list[list] = []

    def __call__(self, *args):
        kept = [a.detach().clone() if isinstance(a, torch.Tensor) else a for a in args]
        self.calls.append(kept)


@builder
class VirtualGPU:
    """A device in simulated time that works behind its caller's back, as a GPU does.

    prefill(), decode() and sample() queue work and return at once; item() waits until all of it is done
    and hands over the token that was sampled last. clock() is the host's time in seconds.
    """

    CALL = 10e-6  # seconds of the host for each call

    def __init__(self, prefill: float, decode: float, sample: float, started: float = 0.0):
        self._seconds = {"prefill": prefill, "decode": decode, "sample": sample}
        self._now = self._done = started
        self.tokens = 0  # sampled so far

    def clock(self) -> float:
        return self._now

    def prefill(self):
        self._queue("prefill")

    def decode(self):
        self._queue("decode")

    def sample(self):
        self._queue("sample")
        self.tokens += 1

    def item(self) -> int:
        self._now = max(self._now + self.CALL, self._done)
        return self.tokens

    def _queue(self, work: str):
        self._now += self.CALL
        self._done = max(self._done, self._now) + self._seconds[work]


class OnPaper(torch.Tensor):
    """A tensor that refuses the library's attention, for tasks that are to be written without it."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if "attention" in name:
            raise RuntimeError(f"this task is to be written without {name}")
        return super().__torch_function__(func, types, args, kwargs or {})


@builder
def on_paper(seed: int, shape: list[int]) -> OnPaper:
    """Standard normal numbers [*shape] drawn from the seed, as an OnPaper tensor."""
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return numbers.as_subclass(OnPaper)


@builder
def kernel_source() -> Callable:
    """Reads the source of a Triton kernel, where the learner's code lives."""
    from minitransformer.course.kernel_source import read_source

    return read_source


@builder
def poisoned_call() -> Callable:
    """Calls a function on tensors within poisoned buffers, where the learner's code lives."""
    from minitransformer.course.poisoned import call_on_poisoned

    return call_on_poisoned
