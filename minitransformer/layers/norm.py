"""RMSNorm: scale each vector to unit root mean square (Zhang and Sennrich 2019, arXiv 1910.07467)."""

from collections.abc import Callable

import torch
from torch import nn


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / rms(x) * weight over the last dimension, the mean taken in float32. x [..., size] -> [..., size]"""
    x32 = x.float()
    scale = torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
    return weight * (x32 * scale).to(x.dtype)


class RMSNorm(nn.Module):
    """`rms_norm` with a weight that is learned.

    LayerNorm without the mean and the bias: one reduction less, and no worse in practice.
    """

    def __init__(self, size: int, eps: float, norm: Callable = rms_norm):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps, self.norm = eps, norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [..., size] -> [..., size]
        return self.norm(x, self.weight, self.eps)
