"""Pairs over NIXL (github.com/ai-dynamo/nixl), the transfer library of vLLM, SGLang and Dynamo.

One side writes into the other's memory, by whatever way its UCX finds: RDMA, shared memory, TCP. Here each
end registers one buffer, and tensors pass through it piece by piece; an engine made for RDMA registers
its whole cache instead and lets the card read its blocks. NIXL's helpers for descriptors use pickle, so
what is exchanged here is plain numbers. UCX listens where it likes: UCX_NET_DEVICES chooses.
"""

import time
from collections import Counter

import torch
from torch.distributed import PrefixStore

from minitransformer.disaggregation.pair import Pair

try:
    from nixl._api import nixl_agent, nixl_agent_config
except ImportError as error:
    raise ValueError(f"transport='nixl' needs the package nixl: {error}") from None

PIECE = 4 * 2**20  # bytes that are written at once
READY, WRITTEN = b"ready", b"written"


class NixlPair(Pair):
    """The receiver says when its buffer is free, the sender writes and says when it has."""

    def _meet(self, store: PrefixStore, prefix: str, host: str):
        self._agent = nixl_agent(f"{prefix}/{self.rank}", nixl_agent_config(backends=["UCX"]))
        self._buffer, self._heard = torch.zeros(PIECE, dtype=torch.uint8), Counter()
        self._registered = self._agent.register_memory([self._buffer])
        store.set(f"address/{self.rank}", str(self._buffer.data_ptr()))
        store.set(f"metadata/{self.rank}", self._agent.get_agent_metadata())
        self._their_address = int(store.get(f"address/{self.other}"))
        self._them = self._agent.add_remote_agent(store.get(f"metadata/{self.other}"))
        self._them = self._them.decode() if isinstance(self._them, bytes) else self._them

    def send(self, tensor: torch.Tensor):
        for piece in _pieces(tensor):
            self._await(READY, self.timeout_s)
            self._buffer[: len(piece)].copy_(piece)
            self._write(len(piece))

    def recv(self, tensor: torch.Tensor, link_s: float = 0.0):
        for piece in _pieces(tensor):
            self._agent.send_notif(self._them, READY)
            self._await(WRITTEN, self.timeout_s + link_s)
            piece.copy_(self._buffer[: len(piece)])

    def _write(self, nbytes: int):
        """The first bytes of this buffer to the other one."""
        ours, theirs = (
            self._agent.get_xfer_descs([(address, nbytes, 0)], "DRAM")
            for address in (self._buffer.data_ptr(), self._their_address)
        )
        handle = self._agent.initialize_xfer("WRITE", ours, theirs, self._them, WRITTEN)
        state, give_up = self._agent.transfer(handle), time.monotonic() + self.timeout_s
        while state == "PROC":
            self._pause(give_up)
            state = self._agent.check_xfer_state(handle)
        self._agent.release_xfer_handle(handle)
        if state != "DONE":
            raise RuntimeError(f"NIXL could not write {nbytes} bytes: {state}")

    def _await(self, what: bytes, timeout_s: float):
        """Until the other end has said so, once more than it was heard before."""
        give_up = time.monotonic() + timeout_s
        while not self._heard[what]:
            for messages in self._agent.get_new_notifs().values():
                self._heard.update(messages)
            self._pause(give_up)
        self._heard[what] -= 1

    def _pause(self, give_up: float):
        if time.monotonic() > give_up:
            raise RuntimeError("the other end said nothing in time")
        time.sleep(50e-6)


def _pieces(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """A contiguous tensor's memory as bytes, in pieces that fit the buffers."""
    return tensor.view(-1).view(torch.uint8).split(PIECE)
