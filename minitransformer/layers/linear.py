"""Linear layers, also in number formats that a CPU cannot multiply.

A CPU without bf16 instructions takes five to ten times as long for a bf16 matrix product as for a
float32 one. Widening a weight to float32 is exact and costs one pass over it, so with a few rows to share
that pass it pays. A single row stays as it is: its time is that of reading weights, and narrow ones are
half as much to read.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import nn

ROWS_WORTH_WIDENING = 3
PIECE = 2**22  # numbers widened at a time, 16 MB: the copy of a large output head would take gigabytes


class Linear(nn.Linear):
    """nn.Linear, by way of `linear`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [..., inputs] -> [..., outputs]
        return linear(x, self.weight, self.bias)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [..., inputs] times weight [outputs, inputs], in float32 where that is faster. -> [..., outputs]"""
    if not widens(x.dtype, x.device) or x.numel() < ROWS_WORTH_WIDENING * x.shape[-1]:
        return F.linear(x, weight, bias)
    x32, outputs = x.float(), max(PIECE // weight.shape[1], 1)
    pieces = weight.split(outputs)
    biases = [None] * len(pieces) if bias is None else [part.float() for part in bias.split(outputs)]
    parts = [F.linear(x32, w.float(), b).to(x.dtype) for w, b in zip(pieces, biases, strict=True)]
    return torch.cat(parts, dim=-1)


@cache
def widens(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether products of several rows run in float32: a CPU, and a format it has no instructions for."""
    native = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    if device.type != "cpu" or dtype not in native:
        return False
    is_native = getattr(torch.ops.mkldnn, native[dtype], None)
    return is_native is None or not is_native()
