"""A pool that somebody else has begun, behind the same object as an engine in this process."""

import secrets
from collections.abc import Callable

from minitransformer.config import ModelConfig
from minitransformer.disaggregation.network import Network
from minitransformer.disaggregation.options import Liveness
from minitransformer.disaggregation.records import WorkerState
from minitransformer.disaggregation.remote_engine import RemoteEngine
from minitransformer.hub import find_checkpoint
from minitransformer.serving.llm import LLM
from minitransformer.tokenizer import Tokenizer


class RemoteLLM(LLM):
    """Asks the router that `address()` names.

    path          of the model, for its config and tokenizer; no weights are read
    secret        the run's
    max_num_seqs  requests that the pool may run at once, for a server that refuses what is beyond
    patience_s    how long it goes on without a router; what is unfinished is asked again of the next one

    Use it in a `with` statement, or `close` it.
    """

    def __init__(
        self,
        path,
        address: Callable[[], tuple[str, int]],
        secret: bytes,
        *,
        max_num_seqs: int = 256,
        liveness: Liveness = Liveness(),
        patience_s: float = 120.0,
    ):
        """Raises FileNotFoundError, ValueError for the model. Returns before the router has answered."""
        folder = find_checkpoint(path)
        config, tokenizer = ModelConfig.from_hf(folder), Tokenizer.from_folder(folder)
        self._network = Network(secret, liveness)
        engine = RemoteEngine(
            self._network,
            f"client-{secrets.token_hex(4)}",
            config,
            address,
            max_num_seqs=max_num_seqs,
            patience_s=patience_s,
        )
        self._serve(engine, tokenizer)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Leaves the pool; what is unfinished is dropped."""
        self._network.close()

    def workers(self) -> list[WorkerState]:
        """Those in the pool, as the router saw them a moment ago."""
        return list(self.engine.workers)

    def remove_worker(self, name: str):
        """Gives a worker nothing new; it ends when it has finished what it has. Raises ValueError."""
        if name not in (worker.name for worker in self.workers()):
            raise ValueError(f"there is no worker {name!r}: {[w.name for w in self.workers()]}")
        self.engine.remove_worker(name)
