"""SwiGLU: a feed-forward layer with a gate (Shazeer 2020, arXiv 2002.05202)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from minitransformer.config import ModelConfig
from minitransformer.layers.linear import Linear


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up, both [..., N]: one decides how much of the other passes. -> [..., N]"""
    return F.silu(gate) * up


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), three projections around `swiglu`."""

    def __init__(self, config: ModelConfig, activate: Callable = swiglu):
        super().__init__()
        self.activate = activate
        size, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = Linear(size, inner, bias=False)
        self.up_proj = Linear(size, inner, bias=False)
        self.down_proj = Linear(inner, size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, T, E] -> [B, T, E]
        return self.down_proj(self.activate(self.gate_proj(x), self.up_proj(x)))
