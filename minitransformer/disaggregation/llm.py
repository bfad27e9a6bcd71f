"""A pool of prefill and decode workers on this machine, behind the same object as an engine."""

import secrets
import time
import weakref
from dataclasses import replace
from itertools import count

from minitransformer.disaggregation.client import RemoteLLM
from minitransformer.disaggregation.network import Network
from minitransformer.disaggregation.options import Liveness, RouterOptions, WorkerOptions
from minitransformer.disaggregation.supervisor import Supervisor
from minitransformer.hub import find_checkpoint


class CannotStart(RuntimeError):
    """A worker could not begin; the message holds its last words."""


class DisaggregatedLLM(RemoteLLM):
    """Prefill workers build caches, decode workers turn them into tokens, each a process of its own.

    path             of the model, as `load_pretrained` takes it; every worker loads it for itself
    host             where all processes listen; 127.0.0.1: nobody outside this machine reaches them
    options          of each worker, fields of `WorkerOptions`: what `LLM` takes (num_blocks, block_size,
                     max_num_batched_tokens, ...), dtype, device, num_threads, and link, such as
                     `Link(gbps=1.0)`, which makes this machine's memory a slow network
    prefill_options, decode_options   those of one kind alone, such as {"block_size": 8}
    router           when a prompt is computed by the decode worker, what happens on a loss
    liveness         when a process counts as dead
    start_s          so long the workers may take to begin

    Use it in a `with` statement, or `close` it: it holds processes.
    """

    def __init__(
        self,
        path="bundled",
        *,
        prefill_workers: int = 1,
        decode_workers: int = 1,
        host: str = "127.0.0.1",
        prefill_options: dict | None = None,
        decode_options: dict | None = None,
        router: RouterOptions = RouterOptions(),
        liveness: Liveness = Liveness(),
        start_s: float = 120.0,
        **options,
    ):
        """Returns when all workers are there. Raises FileNotFoundError, ValueError; CannotStart where a
        worker ends before, or is late."""
        if prefill_workers < 0 or decode_workers < 1:
            raise ValueError(
                f"a pool needs prefill_workers >= 0 and decode_workers >= 1, got {prefill_workers} and "
                f"{decode_workers}"
            )
        everyone = WorkerOptions(
            name="", model=str(find_checkpoint(path)), host=host, liveness=liveness, **options
        )
        self._options = {"prefill": prefill_options or {}, "decode": decode_options or {}}
        self._start_s, self._numbers, secret = start_s, count(), secrets.token_hex(32)
        super().__init__(
            path,
            lambda: self._supervisor.address,
            secret.encode(),
            max_num_seqs=decode_workers * replace(everyone, **self._options["decode"]).most_seqs,
            liveness=liveness,
            patience_s=start_s,
        )
        self._supervisor = Supervisor(host, 0, router, liveness, secret)
        self._finalizer = weakref.finalize(self, _end, self._supervisor, self._network)
        router_host, router_port = self._supervisor.address
        self._worker = replace(everyone, router_host=router_host, router_port=router_port)
        self._begin_all(["decode"] * decode_workers + ["prefill"] * prefill_workers)

    def close(self):
        """Ends all processes; what is unfinished is dropped."""
        self._finalizer()

    def add_worker(self, kind: str, **options) -> str:
        """One more "prefill" or "decode" worker; its name, once it is in the pool.

        `options` are `WorkerOptions` that it alone has. Raises CannotStart.
        """
        if kind not in self._options:
            raise ValueError(f"kind={kind!r}: a worker is for prefill or decode")
        name = self._begin(kind, **options)
        self._await([name])
        return name

    def _begin_all(self, kinds: list[str]):
        try:
            self._await([self._begin(kind) for kind in kinds])
        except BaseException:
            self.close()
            raise

    def _begin(self, kind: str, **options) -> str:
        name = f"{kind}-{next(self._numbers)}"
        changes = self._options[kind] | options
        self._supervisor.begin_worker(kind, replace(self._worker, name=name, **changes))
        return name

    def _await(self, names: list[str]):
        """Until all of these are in the pool. Raises CannotStart."""
        give_up = time.monotonic() + self._start_s
        while missing := set(names) - {worker.name for worker in self.workers()}:
            ended = self._supervisor.ended()
            for name in missing & ended.keys():
                raise CannotStart(f"{name} has ended before it began: {ended[name] or 'without a word'}")
            if time.monotonic() > give_up:
                raise CannotStart(f"{', '.join(sorted(missing))} did not begin within {self._start_s} s")
            self.engine.tend()


def _end(supervisor: Supervisor, network: Network):
    supervisor.close()
    network.close()
