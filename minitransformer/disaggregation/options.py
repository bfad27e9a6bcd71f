"""What can be set, and how processes tell each other: as JSON, over a pipe."""

from dataclasses import asdict, dataclass, field

from minitransformer.serving.engine import MOST_SEQS

TRANSPORTS = ("gloo", "nccl", "nixl")
SECRET = "MINITRANSFORMER_SECRET"  # the environment variable that holds the run's secret


@dataclass(frozen=True)
class Liveness:
    """Seconds: between two signs of life, and of silence after which a peer counts as dead."""

    interval: float = 0.5
    dead_after: float = 3.0

    def __post_init__(self):
        if not 0 < self.interval < self.dead_after:
            raise ValueError(f"0 < interval < dead_after, got {self.interval} and {self.dead_after}")


@dataclass(frozen=True)
class Link:
    """How keys and values travel.

    gbps, latency_s  make the link slower than it is: its bandwidth in gigabits a second (None: as fast as
                     it goes), and the time that a message takes beside it
    transport        "gloo" (through the host's memory), "nccl" (from GPU to GPU) or "nixl"
    layerwise        a layer leaves when it is written; False: all leave when the last one is
    timeout_s        so long the two sides wait for each other
    """

    gbps: float | None = None
    latency_s: float = 0.0
    transport: str = "gloo"
    layerwise: bool = True
    timeout_s: float = 30.0

    def seconds(self, nbytes: int) -> float:
        """How long a message of so many bytes is made to take."""
        return self.latency_s + (nbytes * 8 / (self.gbps * 1e9) if self.gbps else 0.0)

    def __post_init__(self):
        if self.transport not in TRANSPORTS:
            raise ValueError(f"transport={self.transport!r}: choose one of {', '.join(TRANSPORTS)}")
        if (self.gbps is not None and self.gbps <= 0) or self.latency_s < 0 or self.timeout_s <= 0:
            raise ValueError(
                f"a link needs gbps > 0, latency_s >= 0 and timeout_s > 0, got {self.gbps}, {self.latency_s} "
                f"and {self.timeout_s}"
            )


@dataclass(frozen=True)
class WorkerOptions:
    """Everything that a worker is told; `host` is where others reach it, `patience_s` how long it looks
    for a router before it gives up."""

    name: str
    model: str
    router_host: str = ""
    router_port: int = 0
    host: str = "127.0.0.1"
    num_blocks: int = 256
    block_size: int = 16
    max_num_batched_tokens: int = 512
    max_num_seqs: int | None = None
    scheduling: str = "chunked"
    prefix_caching: bool = True
    dtype: str | None = None
    device: str = "cpu"
    num_threads: int | None = None
    patience_s: float = 60.0
    link: Link = field(default_factory=Link)
    liveness: Liveness = field(default_factory=Liveness)

    @classmethod
    def of(cls, content: dict) -> "WorkerOptions":
        """From `asdict`'s dict, as it came over a pipe."""
        link, liveness = Link(**content.pop("link")), Liveness(**content.pop("liveness"))
        return cls(**content, link=link, liveness=liveness)

    def as_dict(self) -> dict:
        return asdict(self)

    @property
    def most_seqs(self) -> int:
        """Requests that run at once, as an `Engine` settles it."""
        return self.max_num_seqs or min(MOST_SEQS, self.max_num_batched_tokens)


@dataclass(frozen=True)
class RouterOptions:
    """
    local_below      fewer uncached tokens than these are computed by the decode worker
    max_queue        prompt tokens before every prefill worker beyond which the decode worker computes
                     the prompt, however long (None: never for this reason)
    on_loss          "recompute": a request that lost a worker begins anew; "fail": it ends with an error
    max_attempts     how often it may begin
    no_worker_s      so long a request waits for a decode worker to join
    stall_s          so long it may be silent before its attempt counts as lost
    hang_s           so long a worker's step may take before the worker counts as lost
    """

    local_below: int = 16
    max_queue: int | None = None
    on_loss: str = "recompute"
    max_attempts: int = 5
    no_worker_s: float = 30.0
    stall_s: float = 120.0
    hang_s: float = 60.0

    def __post_init__(self):
        if self.on_loss not in ("recompute", "fail"):
            raise ValueError(f"on_loss is recompute or fail, got {self.on_loss!r}")
        if self.local_below < 0 or self.max_attempts < 1:
            raise ValueError(
                f"local_below={self.local_below} must be at least 0, "
                f"max_attempts={self.max_attempts} at least 1"
            )
