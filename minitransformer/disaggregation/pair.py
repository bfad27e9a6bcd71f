"""The data plane: a prefill worker and a decode worker, joined for keys and values alone.

Each pair has a connection of its own (by default a process group of gloo over TCP with two ranks), so
that workers come and go without a word to the others. The two meet at a TCPStore in the decode worker,
under a prefix that it makes up for this pair and tells over the authenticated channel. A store can't ask
who reads it, so right after they have met each side proves over the new connection that it knows the
run's secret.

Why tensors and not blocks: gloo copies through the kernel's buffers in any case, and one contiguous
tensor a layer makes few, large messages. It also frees the two sides from having equal blocks. Where a
network card reads memory by itself (RDMA, as vLLM's NIXL connector and Mooncake use it) the copy would be
the cost: there whole blocks travel from the one cache into the other, and their layouts must agree.
"""

import hmac
import secrets
import socket
from abc import ABC, abstractmethod
from datetime import timedelta

import torch
from torch.distributed import PrefixStore, ProcessGroupGloo, TCPStore

from minitransformer.disaggregation.messages import Welcome

SENDER, RECEIVER = 0, 1  # ranks


class Pair(ABC):
    """One end of a pair. Every call waits for the other end, `timeout_s` at most.

    What is sent and the tensor that receives it must have one size; a transport need not check it.
    Raises RuntimeError when the other end has gone or is late; the pair can't be used again then.
    """

    on_device = False  # whether tensors of a GPU are sent as they are; else they are copied to the host first

    def __init__(self, store, prefix: str, rank: int, host: str, secret: bytes, timeout_s: float):
        """Meets the other end at `prefix` of the store and makes sure of it."""
        self.rank, self.other, self.timeout_s = rank, 1 - rank, timeout_s
        self._meet(PrefixStore(prefix, store), prefix, host)
        self._prove(secret, prefix, rank)

    @abstractmethod
    def _meet(self, store: PrefixStore, prefix: str, host: str):
        """Connects the two, listening at `host` alone."""

    @abstractmethod
    def send(self, tensor: torch.Tensor):
        """Sends a tensor, which must not change until then; returns when it has left."""

    @abstractmethod
    def recv(self, tensor: torch.Tensor, link_s: float = 0.0):
        """Fills a tensor of the size that is sent; `link_s` more is waited where the link is made slow."""

    def _bytes(self, content: bytes) -> torch.Tensor:
        """As a tensor that can be sent."""
        return torch.frombuffer(bytearray(content), dtype=torch.uint8)

    def _prove(self, secret: bytes, prefix: str, rank: int):
        """Exchanges proofs over the connection itself. Raises RuntimeError for a stranger."""
        ours, theirs = (
            hmac.digest(secret, f"{prefix}/{end}".encode(), "sha256") for end in (rank, self.other)
        )
        got = self._bytes(bytes(len(theirs)))
        if rank == SENDER:
            self.send(self._bytes(ours))
            self.recv(got)
        else:
            self.recv(got)
            self.send(self._bytes(ours))
        if not hmac.compare_digest(bytes(got.tolist()), theirs):
            raise RuntimeError("whoever answered does not know this run's secret")


class GlooPair(Pair):
    """torch.distributed's point to point over TCP, for tensors of the CPU."""

    def _meet(self, store: PrefixStore, prefix: str, host: str):
        options = ProcessGroupGloo._Options()
        options._timeout = timedelta(seconds=self.timeout_s)
        options._devices = [ProcessGroupGloo.create_device(hostname=host)]
        self._group = ProcessGroupGloo(store, self.rank, 2, options)

    def send(self, tensor: torch.Tensor):
        self._group.send([tensor], self.other, 0).wait()

    def recv(self, tensor: torch.Tensor, link_s: float = 0.0):
        self._group.recv([tensor], self.other, 0).wait(timedelta(seconds=self.timeout_s + link_s))


def pair_class(transport: str) -> type[Pair]:
    """What connects a pair: "gloo", "nccl" or "nixl". Raises ValueError for what is not installed."""
    if transport == "nccl":
        from minitransformer.disaggregation.nccl_pair import NcclPair  # not in every PyTorch

        return NcclPair
    if transport == "nixl":
        from minitransformer.disaggregation.nixl_pair import NixlPair  # a package of its own

        return NixlPair
    return GlooPair


class Meeting:
    """A decode worker's TCPStore, which listens at `host` and nowhere else."""

    def __init__(self, host: str):
        bound = socket.create_server((host, 0), family=family_of(host))
        self.host, self.port = host, bound.getsockname()[1]
        self.store = TCPStore(
            host,
            self.port,
            is_master=True,
            wait_for_workers=False,
            master_listen_fd=bound.detach(),  # the store's from now on
        )

    def invite(self) -> Welcome:
        """A new place in the store for one pair."""
        return Welcome(self.host, self.port, secrets.token_hex(16))


def join(kind: type[Pair], welcome: Welcome, host: str, secret: bytes, timeout_s: float) -> Pair:
    """The sender's end. Raises RuntimeError where the two don't meet in time."""
    timeout = timedelta(seconds=timeout_s)
    store = TCPStore(welcome.host, welcome.port, is_master=False, timeout=timeout)
    return kind(store, welcome.prefix, SENDER, host, secret, timeout_s)


def family_of(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
