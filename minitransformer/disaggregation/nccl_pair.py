"""Pairs over NCCL: from the memory of one GPU into that of another one, without the host between.

NCCL refuses two ranks on one GPU; there, and on CPUs, "gloo" is the transport.
"""

from datetime import timedelta

import torch
from torch.distributed import PrefixStore, is_nccl_available

from minitransformer.disaggregation.pair import Pair

if not is_nccl_available():
    raise ValueError("transport='nccl': this PyTorch is built without NCCL; take 'gloo'")

from torch.distributed import ProcessGroupNCCL


class NcclPair(Pair):
    """NCCL's work is on a stream of the GPU; a call returns when the stream has done it."""

    on_device = True

    def _meet(self, store: PrefixStore, prefix: str, host: str):
        options = ProcessGroupNCCL.Options()
        options._timeout = timedelta(seconds=self.timeout_s)
        self._group = ProcessGroupNCCL(store, self.rank, 2, options)

    def send(self, tensor: torch.Tensor):
        self._group.send([tensor], self.other, 0).wait()
        torch.cuda.current_stream().synchronize()

    def recv(self, tensor: torch.Tensor, link_s: float = 0.0):
        self._group.recv([tensor], self.other, 0).wait()
        torch.cuda.current_stream().synchronize()

    def _bytes(self, content: bytes) -> torch.Tensor:
        return super()._bytes(content).cuda()
