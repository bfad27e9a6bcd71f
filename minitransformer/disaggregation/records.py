"""What messages are made of: what is asked, which worker this is, where the time went.

Says nothing of who sends what to whom: that is messages.py.
"""

from dataclasses import dataclass

from minitransformer.sampling import SamplingParams


class BadMessage(ValueError):
    """What came is no message of ours."""


@dataclass(frozen=True)
class Spec:
    """What is asked, and what has been answered already: enough to go on with it anywhere."""

    prompt_ids: tuple[int, ...]
    known_ids: tuple[int, ...]  # the answer so far
    max_new_tokens: int  # of the whole answer, what is known of it included
    stop_ids: tuple[int, ...]
    temperature: float
    top_k: int
    top_p: float
    seed: int | None

    def __post_init__(self):
        if not self.prompt_ids or len(self.known_ids) >= self.max_new_tokens:
            raise BadMessage(
                f"a request of {len(self.prompt_ids)} tokens has {len(self.known_ids)} of the "
                f"{self.max_new_tokens} tokens of its answer"
            )
        if min(self.prompt_ids + self.known_ids) < 0:
            raise BadMessage("token ids are 0 or above")
        _ = self.sampling  # raises ValueError for what nobody can follow

    @property
    def sampling(self) -> SamplingParams:
        return SamplingParams(self.temperature, self.top_k, self.top_p, self.seed)

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.known_ids)


@dataclass(frozen=True)
class Fingerprint:
    """What two workers must have in common, or one would go on with keys that mean nothing to it.

    config, dtype, weights  the model: its shape (JSON), the type of its numbers, a hash of them
    layout                  of keys and values as they travel
    """

    config: str
    dtype: str
    weights: str
    layout: str


@dataclass(frozen=True)
class NewToken:
    """The token of `key` at place `index` of its answer."""

    key: str
    attempt: int
    index: int
    token: int


@dataclass(frozen=True)
class Part:
    """`count` tokens of a request, from position `start` on, whose keys and values travel."""

    key: str
    attempt: int
    start: int
    count: int


@dataclass(frozen=True)
class Stages:
    """Seconds that a request spent in each stage; the stages follow one another without a gap.

    queued       from its arrival at the router to its first step on the worker that computes its prompt
    prefill      until its first token was sampled there
    first_token  until that token was at the router. These three are the time to first token.
    transfer     until the decode worker had its keys and values: as much as layers did not hide
    decode       until its last token
    receiving    not a stage of its own: how long keys and values were on their way, hidden or not

    prefill_at, decode_at: the workers that computed the first token and the others.
    """

    queued: float
    prefill: float
    first_token: float
    transfer: float
    decode: float
    receiving: float
    prefill_at: str
    decode_at: str


@dataclass(frozen=True)
class WorkerState:
    """A worker as the router sees it."""

    name: str
    kind: str
    pid: int
    draining: bool
    num_requests: int
    num_blocks: int
    num_free: int
    bytes_moved: int
    transfer_s: float
