"""Checks of exercise 10, disaggregated prefill and decode: 10.transfer, keys and values on their way.

Keys and values to send and the cache that they should end up in stand on this side of the check, and so does
the link between the two. 10.bugs is in handover_bugs.py, 10.napkin in handover_napkin.py, 10.pools in
pool_design.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from minitransformer.course.checking import expect, expect_close, fetch, keep, task
from minitransformer.course.checks import handover_bugs, handover_napkin, pool_design  # noqa: F401


@dataclass(frozen=True)
class Case:
    """One request: `ends` are the tokens computed after each step of the prefill side, `cached` those that
    the decode side holds already; the two sides' blocks have `sizes` tokens."""

    layers: int
    heads: int
    dim: int
    ends: tuple[int, ...]
    cached: int
    sizes: tuple[int, int]
    dtype: torch.dtype = torch.float32

    @property
    def tokens(self) -> int:
        return self.ends[-1]

    def __str__(self) -> str:
        return (
            f"{self.tokens} tokens computed up to {list(self.ends)}, {self.cached} of them cached on the "
            f"decode side, {self.layers} layers, blocks of {self.sizes[0]} here and {self.sizes[1]} there, "
            f"{str(self.dtype).removeprefix('torch.')}"
        )


CASES = [
    Case(1, 1, 2, (1,), 0, (1, 1)),
    Case(3, 2, 4, (9,), 0, (4, 4)),
    Case(2, 2, 4, (21,), 8, (4, 8)),
    Case(3, 1, 4, (5, 10, 15, 17), 0, (4, 3)),
    Case(2, 3, 2, (6, 12, 18), 7, (16, 5), torch.float16),
    Case(2, 2, 4, (4, 8, 13), 12, (3, 4), torch.bfloat16),
]


@dataclass
class Side:
    """A paged cache of random numbers [2, L, N, block, G, D], and the request's table in it."""

    case: Case
    rng: object
    size: int
    memory: torch.Tensor = field(init=False)
    table: list[int] = field(init=False)

    def __post_init__(self):
        case, held = self.case, -(-self.case.tokens // self.size)
        shape = (2, case.layers, held + 3, self.size, case.heads, case.dim)
        self.memory = self.rng.randn(*shape, dtype=case.dtype)
        self.table = self.rng.permutation(held + 3)[:held].tolist()

    def write(self, memory: torch.Tensor, kv: torch.Tensor, tokens: Sequence[int], layers=slice(None)):
        """Puts tokens of `kv` [2, L, T, G, D] where the table says."""
        for t in tokens:
            memory[:, layers, self.table[t // self.size], t % self.size] = kv[:, layers, t]


class Transfer:
    """Runs one request: carries the sender's messages, shuffled and some of them twice, to the receiver."""

    def __init__(self, sender, receiver, case: Case, rng):
        self.case, self.rng, self.given = case, rng, str(case)
        self.here, self.there = (Side(case, rng, size) for size in case.sizes)
        shape = (2, case.layers, case.tokens, case.heads, case.dim)
        self.kv = rng.randn(*shape, dtype=case.dtype)
        self.sender = sender(list(self.here.table), case.cached)
        self.kept = [keep(receiver, side.clone()) for side in self.there.memory]
        self.receiver = receiver(*self.kept, list(self.there.table), case.cached, case.tokens)
        self.has = [set() for _ in range(case.layers)]

    def messages(self) -> list[tuple[int, int, int, object]]:
        """(layer, first token, end, message) of every layer of every step, each looked at."""
        made, done = [], self.case.cached
        for end in self.case.ends:
            for layer in range(self.case.layers):
                memory = self.here.memory.clone()
                self.here.write(memory, self.kv, range(end))
                message = self.sender.layer_written(layer, memory[0, layer], memory[1, layer], end)
                self.expect_size(message, layer, done, end)
                if end > done:
                    made.append((layer, done, end, message))
            done = max(done, end)
        return made

    def expect_size(self, message, layer: int, done: int, end: int):
        given = f"For {self.given}, layer {layer} after {end} tokens"
        new = max(0, end - done)
        if new == 0:
            expect(message is None, f"{given}: the decode side lacks none of them, so None should come back.")
            return
        size, others = weigh(message)
        plain = (
            "A message goes over a network: make it of tensors, whole numbers, strings, lists, tuples, dicts."
        )
        expect(not others, f"{given}: the message holds {others}. {plain}")
        right = new * 2 * self.case.heads * self.case.dim * self.kv.element_size()
        cause = ""
        if size == right // 2:
            cause = "Keys and values must both travel."
        elif size == right * end // new and done:
            cause = "What is there already, or was sent before, does not travel again."
        elif size > right and size % (right // new * self.case.sizes[0]) == 0:
            cause = "Whole blocks travel, with slots in them that hold nothing of this request."
        elif size == 0:
            cause = "Is what has been sent counted for each layer by itself?"
        elif size * self.kv.element_size() == right * 4:
            cause = "Numbers travel as they are stored; they were widened to float32."
        words = f"the message should hold {right:,} bytes of tensors ({new} tokens), but holds {size:,}."
        expect(size == right, f"{given}: {words} {cause}".rstrip())

    def deliver(self, messages):
        """In random order, one of three twice, with a look at what the receiver says in between."""
        late = [messages[i] for i in self.rng.permutation(len(messages))[: len(messages) // 3 + 1].tolist()]
        order = [*messages, *late]
        for i in self.rng.permutation(len(order)).tolist():
            layer, start, end, message = order[i]
            self.receiver.take(message)
            self.has[layer] |= set(range(start, end))
            self.expect_ready(f"For {self.given}, after messages out of order")
        self.expect_memory(self.wanted())

    def expect_ready(self, given: str):
        lacking = [self.case.tokens - self.case.cached - len(has) for has in self.has]
        for layer, lacks in enumerate(lacking):
            came = self.receiver.layer_ready(layer)
            why = (
                "Messages come twice, and later ones first: count the tokens that are here." if lacks else ""
            )
            should = f"layer_ready({layer}) should be {lacks == 0}: {lacks} tokens are not there yet"
            expect(came == (lacks == 0), f"{given}: {should}, but {came!r} came. {why}".rstrip())
        self.expect_written([layer for layer, lacks in enumerate(lacking) if not lacks], given)
        came, whole = self.receiver.complete(), not any(lacking)
        expect(
            came == whole, f"{given}: complete() should be {whole}, with {lacking} tokens lacking by layer."
        )

    def expect_written(self, layers: list[int], given: str):
        """A layer that is said to be ready can be read."""
        came, wanted = torch.stack([fetch(side) for side in self.kept]), self.wanted()
        untouched = (came == self.there.memory) & (wanted != self.there.memory)
        late = "but not all of its keys and values are in the cache, where this side's table has them"
        for layer in layers:
            expect(
                not untouched[:, layer].any(),
                f"{given}: layer_ready({layer}) is True, {late}. A step could read it now.",
            )

    def wanted(self) -> torch.Tensor:
        memory = self.there.memory.clone()
        self.there.write(memory, self.kv, range(self.case.cached, self.case.tokens))
        return memory

    def expect_memory(self, wanted: torch.Tensor, why: str = ""):
        came = torch.stack([fetch(side) for side in self.kept])
        if torch.equal(came, wanted):
            return
        changed = (came != self.there.memory) & (wanted == self.there.memory)
        if changed.any():
            _, layer, block, slot = changed.nonzero()[0, :4].tolist()
            why = why or "Only tokens from num_cached on are written, where this side's table has them."
            expect(
                False, f"For {self.given}: slot {slot} of block {block} in layer {layer} was changed. {why}"
            )
        swapped = [(wanted.flip(0), "Keys and values have changed places.")]
        expect_close(came.float(), wanted.float(), self.given, swapped, tolerance=0, name="the cache")

    def run(self):
        self.expect_ready(f"For {self.given}, before any message")
        self.deliver(self.messages())

    def run_aborted(self, share: float):
        """A share of the messages come, the request is aborted, and its blocks go to somebody else."""
        messages = self.messages()
        count = int(share * len(messages))
        for *_, message in messages[:count]:
            self.receiver.take(message)
        before = torch.stack([fetch(side) for side in self.kept])
        self.receiver.abort()
        for *_, message in messages[count:]:
            self.receiver.take(message)
        came = torch.stack([fetch(side) for side in self.kept])
        why = "Its blocks have gone back to the pool: a late message must not touch them."
        expect(torch.equal(came, before), f"For {self.given}, a message after abort() was written. {why}")
        given = f"For {self.given}, aborted after {count} of {len(messages)} messages"
        expect(
            not self.receiver.complete(), f"{given}: complete() should be False, whatever had come before."
        )


def weigh(message) -> tuple[int, str]:
    """Bytes of the tensors in a message, and the name of something that is no plain data ("": nothing)."""
    if isinstance(message, (torch.Tensor, np.ndarray)):
        return message.nbytes, ""
    if message is None or isinstance(message, (bool, int, str)):
        return 0, ""
    if isinstance(message, dict):
        message = [*message.keys(), *message.values()]
    if isinstance(message, (list, tuple, set)):
        parts = [weigh(part) for part in message]
        return sum(size for size, _ in parts), next((other for _, other in parts if other), "")
    return 0, f"a {type(message).__name__}" if isinstance(message, float) else repr(message)


@task("10.transfer", "layer by layer to another cache")
def transfer(answer, rng):
    both = isinstance(answer, (list, tuple)) and len(answer) == 2
    expect(both, "The answer should be the pair (Sender, Receiver).")
    sender, receiver = answer
    for case in CASES:
        Transfer(sender, receiver, case, rng).run()
    for _ in range(2):
        chunks = rng.randint(2, 5)
        ends = tuple(int(e) for e in torch.cumsum(rng.randint(1, 9, chunks), 0))
        cached, sizes = rng.randint(0, ends[-1]), (rng.randint(1, 7), rng.randint(1, 7))
        Transfer(sender, receiver, Case(3, 2, 3, ends, cached, sizes), rng).run()
    for share in (0.5, 1):
        Transfer(sender, receiver, CASES[3], rng).run_aborted(share)
