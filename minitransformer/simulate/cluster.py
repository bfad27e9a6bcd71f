"""Machines: what a replica is made of, how many of each kind there are, and how they are joined.

A replica is one copy of a model on one chip or several (tensor parallelism). Pools are replicas of a kind
with a role; a cluster is pools and the link that carries caches between them. Nothing here knows a load.
"""

import math
from dataclasses import dataclass
from functools import cached_property

from minitransformer.config import ModelConfig
from minitransformer.roofline import Device, dtype_bytes, kv_bytes_per_token, weight_bytes
from minitransformer.roofline.dtypes import wide_format
from minitransformer.serving.scheduler import POLICIES
from minitransformer.simulate.checks import require_number, require_share, require_whole

ROLES = ("both", "prefill", "decode")


@dataclass(frozen=True)
class Link:
    """bandwidth in bytes/s (400 Gbit/s is 50e9), latency in seconds."""

    bandwidth: float
    latency: float = 0.0

    def __post_init__(self):
        require_number("bandwidth", self.bandwidth, above=0)
        require_number("latency", self.latency, least=0)

    def all_reduce_s(self, nbytes: float, members: int) -> tuple[float, float]:
        """Seconds in which `members` add up vectors of `nbytes`: what latency takes, what bandwidth takes.

        Halving and doubling: 2 log2(n) messages, 2 (n - 1) / n of the vector (Thakur, Rabenseifner and
        Gropp 2005, doi 10.1177/1094342005051521, section 4.5).
        """
        if members == 1:
            return 0.0, 0.0
        messages = 2 * math.ceil(math.log2(members))
        return messages * self.latency, 2 * (members - 1) / members * nbytes / self.bandwidth


@dataclass(frozen=True)
class Efficiency:
    """What a real step reaches of the roofline. The default is the roofline itself: a lower bound.

    flops, bandwidth   shares of the peak and of the bandwidth that steps reach
    step_s             seconds that each step takes besides (launches, scheduling, sampling)
    sequence_s         and for each sequence that takes part
    token_s            and for each new token
    wake_s             and the first one after a pause, when caches and clocks have gone cold
    """

    flops: float = 1.0
    bandwidth: float = 1.0
    step_s: float = 0.0
    sequence_s: float = 0.0
    token_s: float = 0.0
    wake_s: float = 0.0

    def __post_init__(self):
        require_share("flops", self.flops)
        require_share("bandwidth", self.bandwidth)
        for name in ("step_s", "sequence_s", "token_s", "wake_s"):
            require_number(name, getattr(self, name), least=0)


@dataclass(frozen=True)
class Replica:
    """A model on `chips` devices, and the engine that runs there.

    dtype, cache_dtype, compute_dtype   of weights, cache and arithmetic, as in `roofline`
    link                     between its chips: two all-reduces a layer pass over it
    usable                   share of the memory for weights and cache; the rest is for activations
    num_blocks               blocks of the cache; None: as many as fit
    block_size, max_num_batched_tokens, max_num_seqs, scheduling   as those of `serving.LLM`
    prefix_caching           whether equal beginnings are computed once
    idle_watts               of one chip that waits; known only to whoever has measured it
    Raises ValueError, with the number of chips that would do, where the model does not fit.
    """

    model: ModelConfig
    device: Device
    chips: int = 1
    dtype: str = "bf16"
    cache_dtype: str | None = None
    compute_dtype: str | None = None
    efficiency: Efficiency = Efficiency()
    link: Link | None = None
    usable: float = 0.9
    num_blocks: int | None = None
    block_size: int = 16
    max_num_batched_tokens: int = 2048
    max_num_seqs: int = 256
    scheduling: str = "chunked"
    prefix_caching: bool = True
    idle_watts: float | None = None

    def __post_init__(self):
        for name in ("chips", "block_size", "max_num_batched_tokens", "max_num_seqs"):
            require_whole(name, getattr(self, name))
        require_share("usable", self.usable)
        if self.chips > 1 and self.link is None:
            raise ValueError(
                f"{self.chips} chips need a link between them: Replica(..., link=Link(bandwidth))"
            )
        if self.scheduling not in POLICIES:
            raise ValueError(f"scheduling={self.scheduling!r}: choose one of {', '.join(POLICIES)}")
        if self.max_num_seqs > self.max_num_batched_tokens:
            raise ValueError(
                f"max_num_seqs={self.max_num_seqs} must be at most max_num_batched_tokens="
                f"{self.max_num_batched_tokens}: each running request needs a token of a step's budget"
            )
        self.device.peak(self.compute_dtype)
        if self.num_blocks is not None:
            require_whole("num_blocks", self.num_blocks)
        elif self.blocks < 1:
            raise ValueError(_too_small(self))

    @property
    def name(self) -> str:
        return self.device.name if self.chips == 1 else f"{self.chips}x {self.device.name}"

    @cached_property
    def blocks(self) -> int:
        """Blocks of the cache, over all chips."""
        if self.num_blocks is not None:
            return self.num_blocks
        room = self.usable * self.chips * self.device.memory_bytes - weight_bytes(self.model, self.dtype)
        return max(int(room // (self.block_size * self.kv_bytes)), 0)

    @property
    def kv_bytes(self) -> float:
        """Bytes of cache a token."""
        return kv_bytes_per_token(self.model, self.cache_dtype or wide_format(self.dtype))

    @property
    def longest(self) -> int:
        """Tokens, prompt and answer together, that one request can have here."""
        return min(self.blocks * self.block_size + 1, self.model.max_position_embeddings)


def chips_needed(
    model: ModelConfig,
    device: Device,
    tokens: int = 1,
    *,
    dtype="bf16",
    cache_dtype=None,
    usable: float = 0.9,
) -> int:
    """The fewest chips that hold the weights and a cache of `tokens`: capacity alone, no speed."""
    require_whole("tokens", tokens, least=0)
    require_share("usable", usable)
    cache = tokens * kv_bytes_per_token(model, cache_dtype or wide_format(dtype))
    return math.ceil((weight_bytes(model, dtype) + cache) / (usable * device.memory_bytes))


@dataclass(frozen=True)
class Pool:
    """`count` equal replicas with one role: "prefill", "decode", or "both" for whole requests."""

    replica: Replica
    count: int
    role: str = "both"

    def __post_init__(self):
        require_whole("count", self.count)
        if self.role not in ROLES:
            raise ValueError(f"role={self.role!r}: choose one of {', '.join(ROLES)}")
        if self.role != "both" and self.replica.scheduling == "static":
            raise ValueError(f"a {self.role} pool can't schedule by whole static batches")

    @property
    def chips(self) -> int:
        return self.count * self.replica.chips

    @property
    def name(self) -> str:
        role = "" if self.role == "both" else f" {self.role}"
        return f"{self.count} x {self.replica.name}{role}"


@dataclass(frozen=True)
class Failure:
    """Replica `replica` of pool `pool` dies at `at_s` and is back, empty, at `back_s`."""

    pool: int
    replica: int
    at_s: float
    back_s: float = math.inf

    def __post_init__(self):
        require_number("at_s", self.at_s, least=0)
        if not self.back_s > self.at_s:
            raise ValueError(f"a replica that dies at {self.at_s} s can't be back at {self.back_s} s")


@dataclass(frozen=True)
class Cluster:
    """Pools, and what joins them.

    link         that caches pass over, from prefill to decode replicas; each replica has one such port
    layerwise    a layer's keys and values leave while later layers compute; False: after the step
    local_below  fewer tokens than these that are not in its cache a decode replica computes itself
    max_queue    and any prompt, if more tokens than this wait before every prefill replica (None: never)
    failures     when replicas die and come back
    Raises ValueError for pools that can't serve a request together.
    """

    pools: tuple[Pool, ...]
    link: Link | None = None
    layerwise: bool = True
    local_below: int = 16
    max_queue: int | None = None
    failures: tuple[Failure, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "pools", tuple(self.pools))
        object.__setattr__(self, "failures", tuple(self.failures))
        roles = {pool.role for pool in self.pools}
        if not self.pools:
            raise ValueError("a cluster needs a pool")
        if ("both" in roles and len(roles) > 1) or len(roles & {"prefill", "decode"}) == 1:
            raise ValueError(
                f"pools of roles {', '.join(sorted(roles))} serve no request together: give pools of role "
                '"both", or some of "prefill" and some of "decode"'
            )
        if len({pool.replica.model for pool in self.pools}) > 1:
            raise ValueError("all pools of a cluster serve the same model")
        if self.disaggregated and self.link is None:
            raise ValueError(
                "prefill and decode pools need a link for the caches: Cluster(..., link=Link(...))"
            )
        require_whole("local_below", self.local_below, least=0)
        for failure in self.failures:
            if not (
                0 <= failure.pool < len(self.pools) and 0 <= failure.replica < self.pools[failure.pool].count
            ):
                raise ValueError(f"{failure} names a replica that there is not")

    @property
    def disaggregated(self) -> bool:
        return any(pool.role == "prefill" for pool in self.pools)

    @property
    def chips(self) -> int:
        return sum(pool.chips for pool in self.pools)

    @property
    def price_per_hour(self) -> float:
        """Dollars. Raises ValueError where a chip has no price."""
        for pool in self.pools:
            if pool.replica.device.price_per_hour is None:
                raise ValueError(
                    f"{pool.replica.device.name} has no price an hour: replace(device, price_per_hour=...)"
                )
        return sum(pool.chips * pool.replica.device.price_per_hour for pool in self.pools)

    @property
    def name(self) -> str:
        return " + ".join(pool.name for pool in self.pools)


def colocated(replica: Replica, count: int = 1, **options) -> Cluster:
    """`count` replicas that each serve whole requests."""
    return Cluster((Pool(replica, count),), **options)


def disaggregated(
    prefill: Replica, num_prefill: int, decode: Replica, num_decode: int, link: Link, **options
) -> Cluster:
    """xPyD: `num_prefill` replicas for prompts, `num_decode` for answers."""
    pools = (Pool(prefill, num_prefill, "prefill"), Pool(decode, num_decode, "decode"))
    return Cluster(pools, link, **options)


def _too_small(replica: Replica) -> str:
    weights, memory = weight_bytes(replica.model, replica.dtype), replica.device.memory_bytes
    needed = chips_needed(
        replica.model,
        replica.device,
        replica.block_size,
        dtype=replica.dtype,
        cache_dtype=replica.cache_dtype,
        usable=replica.usable,
    )
    return (
        f"{weights / 1e9:.3g} GB of weights and a block of cache do not fit into {replica.usable:.0%} of "
        f"{replica.chips} x {memory / 1e9:.3g} GB: {replica.device.name} needs at least {needed} chips"
    )


def act_bytes(replica: Replica) -> float:
    """Bytes of a number of an activation."""
    return dtype_bytes(wide_format(replica.dtype))
