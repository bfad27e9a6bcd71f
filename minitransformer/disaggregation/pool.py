"""The workers that there are, and which of them gets a request. Counts and chooses; sends nothing."""

from collections import OrderedDict
from dataclasses import dataclass, field

from minitransformer.disaggregation.messages import Beat, Join
from minitransformer.disaggregation.records import Spec, WorkerState
from minitransformer.serving.prefix_cache import extend_chain

AFFINITY_BLOCK, MOST_BLOCKS = 16, 32  # tokens that are looked at together, and how many such blocks
MOST_NAMES = 100_000  # beginnings of prompts that are remembered


@dataclass(eq=False)
class Member:
    """A worker in the pool. `load`: tokens that it is asked for and has not done with, by request."""

    info: Join
    channel: object  # has send(message) and close(reason)
    beat: Beat = field(default_factory=Beat)
    load: dict[str, int] = field(default_factory=dict)
    outstanding: int = 0  # sum of `load`
    draining: bool = False
    turn: int = 0  # when it was chosen last

    @property
    def name(self) -> str:
        return self.info.name

    def take(self, key: str, num_tokens: int):
        self.load[key] = num_tokens
        self.outstanding += num_tokens

    def release(self, key: str) -> bool:
        """Whether the request was here."""
        num_tokens = self.load.pop(key, None)
        self.outstanding -= num_tokens or 0
        return num_tokens is not None

    def state(self) -> WorkerState:
        return WorkerState(
            name=self.name,
            kind=self.info.kind,
            pid=self.info.pid,
            draining=self.draining,
            num_requests=len(self.load),
            num_blocks=self.info.num_blocks,
            num_free=self.beat.num_free,
            bytes_moved=self.beat.bytes_moved,
            transfer_s=self.beat.transfer_s,
        )


class Pool:
    """Members by name.

    A request goes to the worker with the fewest tokens to do, where tokens that it probably has cached
    count as done: those of a prompt that began alike and went there last.
    """

    def __init__(self):
        self.members: dict[str, Member] = {}
        self._affinity = {"prefill": Affinity(), "decode": Affinity()}
        self._turns = 0

    def of_kind(self, kind: str) -> list[Member]:
        """Those that take new requests."""
        return [m for m in self.members.values() if m.info.kind == kind and not m.draining]

    def max_len(self) -> int:
        """Tokens, prompt and answer, that a request can have; 0 where nobody decodes."""
        return max((m.info.max_len for m in self.of_kind("decode")), default=0)

    def choose_decode(self, spec: Spec, chain: list[bytes]) -> Member | None:
        """A worker with room for the whole request, by the share of its cache that is promised."""
        needed = len(spec.prompt_ids) + spec.max_new_tokens
        fitting = [m for m in self.of_kind("decode") if m.info.max_len >= needed]
        return self._least("decode", fitting, needed, chain, lambda m: m.info.num_blocks * m.info.block_size)

    def choose_prefill(self, spec: Spec, chain: list[bytes], avoid: str | None) -> Member | None:
        """A worker for the tokens so far; `avoid` is taken only where there is none but that."""
        fitting = [m for m in self.of_kind("prefill") if m.info.max_len > spec.num_tokens]
        others = [m for m in fitting if m.name != avoid]
        return self._least("prefill", others or fitting, spec.num_tokens, chain, lambda m: 1)

    def shortest_prefill_queue(self) -> int | None:
        """Tokens before a new prompt where they are fewest; None where there is no prefill worker."""
        return min((m.outstanding for m in self.of_kind("prefill")), default=None)

    def _least(self, kind: str, members: list[Member], needed: int, chain, capacity) -> Member | None:
        if not members:
            return None
        affinity = self._affinity[kind]
        owners = affinity.owners(chain)

        def cost(member: Member) -> tuple[float, int]:
            left = member.outstanding + needed - affinity.tokens(member.name, owners)
            return left / capacity(member), member.turn  # among equals the one whose turn is longest ago

        chosen = min(members, key=cost)
        self._turns += 1
        chosen.turn = self._turns
        affinity.remember(chain, chosen.name)
        return chosen


class Affinity:
    """Which worker had a beginning last."""

    def __init__(self):
        self._owner: OrderedDict[bytes, str] = OrderedDict()  # oldest first

    def owners(self, chain: list[bytes]) -> list[str | None]:
        return [self._owner.get(name) for name in chain]

    def tokens(self, worker: str, owners: list[str | None]) -> int:
        """Tokens at the beginning that this worker had last."""
        blocks = next((i for i, owner in enumerate(owners) if owner != worker), len(owners))
        return blocks * AFFINITY_BLOCK

    def remember(self, chain: list[bytes], worker: str):
        for name in chain:
            self._owner[name] = worker
            self._owner.move_to_end(name)
        while len(self._owner) > MOST_NAMES:
            self._owner.popitem(last=False)


def chain_of(spec: Spec) -> list[bytes]:
    """Names of the beginnings of a prompt."""
    chain: list[bytes] = []
    extend_chain(chain, spec.prompt_ids[: AFFINITY_BLOCK * MOST_BLOCKS], AFFINITY_BLOCK)
    return chain
