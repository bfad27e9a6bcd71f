"""Between a GPU's memory and the network: pinned memory of the host, filled beside the GPU's other work.

Keys and values of a CPU are sent as they are. Those of a GPU are copied on a stream of their own, so that
the next layers compute meanwhile; whoever sends them waits for the copy first.
"""

import torch


class Staged:
    """A tensor that will be on the host when `get` returns."""

    def __init__(self, tensor: torch.Tensor, stream: "torch.cuda.Stream | None"):
        self._copied = None
        if stream is None:
            self._host = tensor
            return
        self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        stream.wait_stream(torch.cuda.current_stream(tensor.device))
        with torch.cuda.stream(stream):
            self._host.copy_(tensor, non_blocking=True)
            self._copied = stream.record_event()
        tensor.record_stream(stream)  # its memory may be used again only after the copy

    @property
    def num_tokens(self) -> int:
        return self._host.shape[1]

    def get(self) -> torch.Tensor:
        if self._copied is not None:
            self._copied.synchronize()
        return self._host


def side_stream(device: torch.device, to_host: bool) -> "torch.cuda.Stream | None":
    """A stream for copies to the host; None where there is nothing to copy."""
    return torch.cuda.Stream(device) if to_host and device.type == "cuda" else None
