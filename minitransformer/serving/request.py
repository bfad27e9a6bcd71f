"""One request as data: what was asked, what has been answered, and how far its cache has come.

The engine knows no prefill and no decode, only tokens that are not computed yet: a whole prompt at first,
a single token at each later step, everything again after a preemption. Knows nothing of text or models.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from minitransformer.sampling import SamplingParams

REASONS = ("stop", "length", "abort", "error")


class Status(Enum):
    WAITING = "waiting"  # holds no memory
    LOADING = "loading"  # holds blocks, whose keys and values come from another process
    RUNNING = "running"  # holds blocks, and takes part in steps
    REMOTE = "remote"  # other processes hold its memory and compute its tokens
    FINISHED = "finished"  # holds no memory any more


@dataclass(eq=False)
class Request:
    """A request and its state. Every change goes through a method, which asserts that it makes sense.

    tokens         prompt and answer so far
    num_computed   how many of these tokens have their keys and values in the cache
    blocks         the blocks that hold them, in order (its block table)
    block_hashes   names of its full blocks' contents, as far as they were needed
    cached_tokens  how many tokens of the prompt the prefix cache had; None until the request first runs
    started_s      when its first step began
    stages         seconds it spent in each stage of its life, known at its end
    workers        who computed what of it, where other processes did
    """

    id: str
    prompt_ids: list[int]
    sampling: SamplingParams
    max_new_tokens: int
    arrival_s: float
    stop_ids: frozenset[int] = frozenset()
    known_ids: Sequence[int] = ()  # the answer's first tokens, where another engine computed them

    tokens: list[int] = field(init=False)
    status: Status = Status.WAITING
    num_computed: int = 0
    blocks: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)
    cached_tokens: int | None = None
    order: int = 0  # of arrival, among the requests of a scheduler
    num_preemptions: int = 0
    started_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None
    finish_reason: str | None = None  # one of REASONS
    error: str | None = None  # what went wrong, where finish_reason is "error"
    stages: dict[str, float] = field(default_factory=dict)
    workers: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        self.tokens = [*self.prompt_ids, *self.known_ids]
        self._check()

    @property
    def output_ids(self) -> list[int]:
        return self.tokens[len(self.prompt_ids) :]

    @property
    def num_output(self) -> int:
        return len(self.tokens) - len(self.prompt_ids)

    @property
    def num_uncomputed(self) -> int:
        """Tokens that must pass through the model before the next one can be sampled; at least one."""
        return len(self.tokens) - self.num_computed

    @property
    def decodes(self) -> bool:
        """Whether its next step follows a token of its own, and not a prompt of which one token is left."""
        return self.num_uncomputed == 1 and self.num_output > 0

    @property
    def most_cached(self) -> int:
        """Tokens that the cache holds at the end: all but the last one, which is never read again."""
        return len(self.prompt_ids) + self.max_new_tokens - 1

    def start(self, blocks: list[int], num_cached: int):
        """Waiting -> running, with blocks of which the first `num_cached` tokens are computed already."""
        assert self.status is Status.WAITING
        self.status, self.blocks, self.num_computed = Status.RUNNING, blocks, num_cached
        if self.cached_tokens is None:
            self.cached_tokens = min(num_cached, len(self.prompt_ids))
        self._check()

    def await_load(self):
        """Running -> loading: the rest of its tokens will be computed elsewhere."""
        assert self.status is Status.RUNNING
        self.status = Status.LOADING
        self._check()

    def resume(self):
        """Loading -> running."""
        assert self.status is Status.LOADING
        self.status = Status.RUNNING
        self._check()

    def hand_over(self):
        """Waiting -> remote: from now on its tokens come from other processes."""
        assert self.status is Status.WAITING
        self.status = Status.REMOTE
        self._check()

    def preempt(self):
        """Running -> waiting, its blocks taken: all tokens, the answer's too, must be computed again."""
        assert self.status is Status.RUNNING
        self.status, self.blocks, self.num_computed = Status.WAITING, [], 0
        self.num_preemptions += 1
        self._check()

    def advance(self, num_tokens: int):
        """Counts tokens as computed, after the model has seen them."""
        assert self.status is Status.RUNNING and 1 <= num_tokens <= self.num_uncomputed
        self.num_computed += num_tokens

    def append(self, token: int, now_s: float):
        """Takes the next token of the answer; finishes where the request's own limits say so."""
        assert self.status is Status.REMOTE or (self.status is Status.RUNNING and self.num_uncomputed == 0)
        self.tokens.append(token)
        self.first_token_s = self.first_token_s or now_s
        self.last_token_s = now_s
        if token in self.stop_ids:
            self.finish_reason = "stop"
        elif self.num_output == self.max_new_tokens:
            self.finish_reason = "length"
        self._check()

    def finish(self, reason: str | None = None):
        """Any state but finished -> finished. The blocks are taken by whoever keeps them, before this."""
        assert self.status is not Status.FINISHED
        self.status, self.blocks = Status.FINISHED, []
        self.finish_reason = self.finish_reason or reason
        if self.started_s is not None and self.first_token_s is not None:
            self.stages = {
                "queued": self.started_s - self.arrival_s,
                "prefill": self.first_token_s - self.started_s,
                "decode": self.last_token_s - self.first_token_s,
            }
        self._check()

    @property
    def ttft_s(self) -> float | None:
        """Seconds from arrival to the first token; None before it."""
        return None if self.first_token_s is None else self.first_token_s - self.arrival_s

    @property
    def tpot_s(self) -> float | None:
        """Seconds per token after the first one; None before the second."""
        steps = self.num_output - 1
        return (self.last_token_s - self.first_token_s) / steps if steps > 0 else None

    def _check(self):
        assert 1 <= len(self.prompt_ids) <= len(self.tokens)
        assert self.num_output <= self.max_new_tokens
        if self.status in (Status.LOADING, Status.RUNNING):
            seen = f"{self.num_computed} of {len(self.tokens)} tokens computed"
            assert 0 <= self.num_computed < len(self.tokens), f"{seen}: none is left to make the next from"
            assert self.blocks
        else:
            assert not self.blocks
        if self.status in (Status.WAITING, Status.REMOTE):
            assert self.num_computed == 0
        assert self.status is not Status.WAITING or self.finish_reason is None
        assert self.status is not Status.FINISHED or self.finish_reason in REASONS
