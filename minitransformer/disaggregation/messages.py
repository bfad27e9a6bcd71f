"""What router, workers and clients say to each other: JSON objects, read into frozen dataclasses.

A message from the network is data: it is parsed, never unpickled. Every field must be there with its
type and nothing else may be; what does not fit is refused by name. Says nothing of bytes and sockets.

A request goes by its `key` everywhere behind the router. Each time it has to begin anew the router counts
its `attempt` up, and whatever carries an older one is of no interest any more.
"""

from dataclasses import dataclass

from minitransformer.disaggregation.records import (
    BadMessage,
    Fingerprint,
    NewToken,
    Part,
    Spec,
    Stages,
    WorkerState,
)

VERSION = 1  # of all that is said here; peers of another one are refused


# --- anybody to anybody -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Beat:
    """I am alive. A worker adds how it stands.

    busy_s       how long its present step has been running
    num_free     free blocks of its cache
    bytes_moved  keys and values sent (prefill) or received (decode) since it began
    transfer_s   seconds in which any were on their way
    """

    busy_s: float = 0.0
    num_free: int = 0
    bytes_moved: int = 0
    transfer_s: float = 0.0


@dataclass(frozen=True)
class Refused:
    reason: str


# --- a worker and the router --------------------------------------------------------------------------


@dataclass(frozen=True)
class Join:
    """A worker begins, with nothing to do. host, port: where a decode worker takes keys and values."""

    name: str
    kind: str  # "prefill" or "decode"
    pid: int
    host: str
    port: int
    fingerprint: Fingerprint
    num_blocks: int
    block_size: int
    max_len: int
    max_num_seqs: int

    def __post_init__(self):
        if self.kind not in ("prefill", "decode"):
            raise BadMessage(f"kind is prefill or decode, got {self.kind!r}")


@dataclass(frozen=True)
class Assign:
    """To a decode worker: make room for this request and answer it.

    Fewer than `local_below` tokens that are not cached are computed here; more come from elsewhere.
    """

    key: str
    attempt: int
    spec: Spec
    local_below: int


@dataclass(frozen=True)
class Reserved:
    """From a decode worker: its blocks are there, `num_cached` tokens in them; the rest, if it is
    `num_external`, has to come from a prefill worker."""

    key: str
    attempt: int
    num_cached: int
    num_external: int


@dataclass(frozen=True)
class PrefillHere:
    """To a decode worker: nobody else computes this request's tokens."""

    key: str
    attempt: int


@dataclass(frozen=True)
class Job:
    """To a prefill worker: compute all tokens of this request and send those from `first` on to the decode
    worker `peer`, then the token that follows."""

    key: str
    attempt: int
    spec: Spec
    first: int
    peer: str
    host: str
    port: int

    def __post_init__(self):
        if not 0 <= self.first < self.spec.num_tokens:
            raise BadMessage(f"tokens from {self.first} on, of {self.spec.num_tokens}")


@dataclass(frozen=True)
class Prefilled:
    """From a prefill worker: the first token, with the seconds that it waited and computed."""

    new: NewToken
    wait_s: float
    prefill_s: float


@dataclass(frozen=True)
class Loaded:
    """From a decode worker: all keys and values are here, `nbytes` of them in `receive_s` seconds."""

    key: str
    attempt: int
    nbytes: int
    receive_s: float


@dataclass(frozen=True)
class Tokens:
    """From a decode worker: what a step brought."""

    new: tuple[NewToken, ...]


@dataclass(frozen=True)
class AttemptFailed:
    key: str
    attempt: int
    reason: str


@dataclass(frozen=True)
class Drop:
    """To a worker: forget this request, and give its blocks back."""

    key: str
    attempt: int


@dataclass(frozen=True)
class Stop:
    """To a worker: end."""


# --- a prefill worker and a decode worker -------------------------------------------------------------


@dataclass(frozen=True)
class Hello:
    name: str
    fingerprint: Fingerprint
    transport: str


@dataclass(frozen=True)
class Welcome:
    """Where the two meet for keys and values: a TCPStore, and a prefix in it that nobody can guess."""

    host: str
    port: int
    prefix: str


@dataclass(frozen=True)
class Transfer:
    """For each layer one tensor [2, n, G, D] of `layer_nbytes` follows, with the n tokens of all parts in
    order."""

    parts: tuple[Part, ...]
    layer_nbytes: int


@dataclass(frozen=True)
class Got:
    """From a decode worker: the request goes on here."""

    key: str
    attempt: int


# --- a client and the router --------------------------------------------------------------------------


@dataclass(frozen=True)
class Greet:
    """A client begins. `name` stays the same when it has to begin anew."""

    name: str


@dataclass(frozen=True)
class Submit:
    id: str
    spec: Spec


@dataclass(frozen=True)
class Abort:
    id: str


@dataclass(frozen=True)
class Answered:
    """To a client: a token of its request; with the first two and the last, the times of the stages."""

    id: str
    index: int
    token: int
    cached_tokens: int
    stages: Stages | None


@dataclass(frozen=True)
class Answers:
    new: tuple[Answered, ...]


@dataclass(frozen=True)
class Failed:
    id: str
    reason: str


@dataclass(frozen=True)
class Remove:
    """From a client: let this worker finish what it has, then let it end."""

    worker: str


@dataclass(frozen=True)
class State:
    """To a client, every now and then: how the pool stands. max_len: tokens that one request can have."""

    workers: tuple[WorkerState, ...]
    max_len: int
    num_waiting: int
    num_running: int


Message = (
    Beat | Refused | Join | Assign | Reserved | PrefillHere | Job | Prefilled | Loaded | Tokens
    | AttemptFailed | Drop | Stop | Hello | Welcome | Transfer | NewToken | Got | Greet | Submit | Abort
    | Answers | Failed | Remove | State
)  # fmt: skip
