"""The data plane: a prefill worker and a decode worker, joined for keys and values alone.

Each pair has a process group of its own (gloo over TCP, two ranks), so that workers come and go without a
word to the others. The two meet at a TCPStore in the decode worker, under a prefix that it makes up for
this pair and tells over the authenticated channel. A store can't ask who reads it, so right after they
have met each side proves over the new connection that it knows the run's secret.

Why tensors and not blocks: gloo copies through the kernel's buffers in any case, and one contiguous
tensor a layer makes few, large messages. It also frees the two sides from having equal blocks. Where a
network card reads memory by itself (RDMA, as NIXL and Mooncake use it) the copy would be the cost:
there whole blocks travel from the one cache into the other, and their layouts must agree.
"""

import hmac
import secrets
import socket
from datetime import timedelta

import torch
from torch.distributed import PrefixStore, ProcessGroupGloo, TCPStore

from minitransformer.disaggregation.messages import Welcome

SENDER, RECEIVER = 0, 1  # ranks


class Pair:
    """One end of a pair. Every call waits for the other end, `timeout_s` at most. What is sent and the
    tensor that receives it must have one size: gloo does not check it.

    Raises RuntimeError when the other end has gone or is late; the pair can't be used again then.
    """

    def __init__(self, store, prefix: str, rank: int, host: str, secret: bytes, timeout_s: float):
        timeout = timedelta(seconds=timeout_s)
        options = ProcessGroupGloo._Options()
        options._timeout = timeout
        options._devices = [ProcessGroupGloo.create_device(hostname=host)]
        self.other, self._timeout_s = 1 - rank, timeout_s
        self._group = ProcessGroupGloo(PrefixStore(prefix, store), rank, 2, options)
        self._prove(secret, prefix, rank)

    def send(self, tensor: torch.Tensor):
        """Sends a tensor, which must not change until then; returns when it has left."""
        self._group.send([tensor], self.other, 0).wait()

    def recv(self, tensor: torch.Tensor, link_s: float = 0.0):
        """Fills a tensor of the size that is sent; `link_s` more is waited where the link is made slow."""
        self._group.recv([tensor], self.other, 0).wait(timedelta(seconds=self._timeout_s + link_s))

    def _prove(self, secret: bytes, prefix: str, rank: int):
        """Exchanges proofs over the connection itself. Raises RuntimeError for a stranger."""
        ours, theirs = (
            hmac.digest(secret, f"{prefix}/{end}".encode(), "sha256") for end in (rank, self.other)
        )
        got = torch.zeros(len(theirs), dtype=torch.uint8)
        if rank == SENDER:
            self.send(torch.frombuffer(bytearray(ours), dtype=torch.uint8))
            self.recv(got)
        else:
            self.recv(got)
            self.send(torch.frombuffer(bytearray(ours), dtype=torch.uint8))
        if not hmac.compare_digest(bytes(got.tolist()), theirs):
            raise RuntimeError("whoever answered does not know this run's secret")


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


def join(welcome: Welcome, host: str, secret: bytes, timeout_s: float) -> Pair:
    """The sender's end. Raises RuntimeError where the two don't meet in time."""
    timeout = timedelta(seconds=timeout_s)
    store = TCPStore(welcome.host, welcome.port, is_master=False, timeout=timeout)
    return Pair(store, welcome.prefix, SENDER, host, secret, timeout_s)


def family_of(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
