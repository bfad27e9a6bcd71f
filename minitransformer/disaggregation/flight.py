"""A request on its way through the pool, as the router remembers it: enough to begin it anew anywhere."""

from dataclasses import dataclass, field, replace

from minitransformer.disaggregation.messages import Answered, Loaded, Prefilled
from minitransformer.disaggregation.pool import Member
from minitransformer.disaggregation.records import Spec, Stages


@dataclass(eq=False)
class Flight:
    """key: its name behind the router. id, client: its name at the client that asked.

    attempt      counts up each time it has to begin anew; `losses` why it had to
    decode       the worker that answers it; None while there is none
    prefill      the worker that computes its tokens for that one, until they are there
    last_sign_s  when something was last heard of it
    """

    key: str
    id: str
    client: object
    spec: Spec
    chain: list[bytes]
    submitted_s: float
    last_sign_s: float
    output_ids: list[int] = field(default_factory=list)
    attempt: int = 0
    losses: list[str] = field(default_factory=list)
    decode: Member | None = None
    prefill: Member | None = None
    avoid: str | None = None
    cached_tokens: int = 0
    times: "Times" = field(default_factory=lambda: Times())

    def __post_init__(self):
        self.output_ids = list(self.spec.known_ids)

    @property
    def finished(self) -> bool:
        last = self.output_ids[-1:]
        ended = len(self.output_ids) == self.spec.max_new_tokens or set(last) & set(self.spec.stop_ids)
        return bool(ended) and len(self.output_ids) > len(self.spec.known_ids)

    def spec_now(self) -> Spec:
        """What is asked, with all that has been answered."""
        return replace(self.spec, known_ids=tuple(self.output_ids))

    def take(self, token: int, now_s: float) -> Answered:
        """The next token of the answer, as the client will hear of it: with the times of the stages so far
        where one has ended by now."""
        self.output_ids.append(token)
        self.times.take(now_s)
        is_news = self.finished or len(self.output_ids) - len(self.spec.known_ids) <= 2
        stages = self.times.stages(self.submitted_s, self.decode.name) if is_news else None
        return Answered(self.id, len(self.output_ids) - 1, token, self.cached_tokens, stages)


@dataclass(eq=False)
class Times:
    """When what happened, by the router's clock; how long it took, by the clock of where it did."""

    reserved_s: float | None = None
    job_s: float | None = None
    prefill_at: str | None = None
    wait_s: float = 0.0
    prefill_s: float = 0.0
    first_s: float | None = None
    last_s: float | None = None
    loaded_s: float | None = None
    receive_s: float = 0.0

    def prefilled(self, message: Prefilled):
        if self.first_s is None:
            self.wait_s, self.prefill_s = message.wait_s, message.prefill_s

    def loaded(self, message: Loaded, now_s: float):
        if self.loaded_s is None:
            self.loaded_s, self.receive_s = now_s, message.receive_s

    def take(self, now_s: float):
        self.first_s = self.first_s or now_s
        self.last_s = now_s

    def stages(self, submitted_s: float, decode_at: str) -> Stages:
        """They add up to the time from arrival to the last token."""
        to_first = self.first_s - submitted_s
        if self.job_s is None or self.job_s > self.first_s:  # its prompt was computed where it is answered
            queued = min(max((self.reserved_s or submitted_s) - submitted_s, 0.0), to_first)
            prefill = to_first - queued
        else:
            queued = min(self.job_s - submitted_s + self.wait_s, to_first)
            prefill = min(self.prefill_s, to_first - queued)
        ready_s = min(max(self.loaded_s or self.first_s, self.first_s), self.last_s)
        return Stages(
            queued=queued,
            prefill=prefill,
            first_token=to_first - queued - prefill,
            transfer=ready_s - self.first_s,
            decode=self.last_s - ready_s,
            receiving=self.receive_s,
            prefill_at=self.prefill_at or decode_at,
            decode_at=decode_at,
        )
