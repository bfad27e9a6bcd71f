"""Rotary position embedding: turn each pair of numbers by an angle that grows with the position.

The dot product of a turned query and a turned key then depends only on how far apart they stand
(Su et al. 2021, arXiv 2104.09864). Angles are computed for the positions asked for, so that a model
with a window of 131,072 tokens holds no table of that length.
"""

import math

import torch
from torch import nn

from minitransformer.config import ModelConfig


class RotaryEmbedding(nn.Module):
    """Cosines and sines for given positions."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        frequencies = scaled_frequencies(config).to(torch.get_default_device())
        self.register_buffer("frequencies", frequencies, persistent=False)

    def _apply(self, fn, recurse=True):
        # model.to(bfloat16) must not round the frequencies: at position 1,000 the angle would be off by
        # radians. So they follow the model to its device, and never to its dtype.
        super()._apply(fn, recurse)
        self.frequencies = scaled_frequencies(self.config).to(self.frequencies.device)
        return self

    @torch.no_grad()
    def forward(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """positions [..., T] -> cos, sin [..., T, D] in float32; both halves of D hold the same angles."""
        angles = positions[..., None].float() * self.frequencies  # [..., T, D/2]
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin()


def scaled_frequencies(config: ModelConfig) -> torch.Tensor:
    """Radians a token for each pair, [D/2]: theta^(-2i/D), then the config's `rope_scaling`.

    On the CPU, wherever the model is being made: also on "meta", where nothing can be computed.
    """
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device="cpu") / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponent
    scaling = config.rope_scaling or {"rope_type": "default"}
    if scaling["rope_type"] == "linear":  # positions squeezed by the factor
        return frequencies / scaling["factor"]
    if scaling["rope_type"] == "llama3":
        return _llama3_scaled(frequencies, scaling)
    return frequencies


def _llama3_scaled(frequencies: torch.Tensor, scaling: dict) -> torch.Tensor:
    """Stretch slow pairs, leave fast ones, blend between (Llama 3.1; arXiv 2407.21783, section 3.4.2).

    A pair that turns many times within the original window already tells near tokens apart; one that
    has not turned once there would meet angles it never saw in training, so it is slowed instead.
    """
    window = scaling["original_max_position_embeddings"]
    turns = window * frequencies / (2 * math.pi)  # full turns within the original window
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    keep = ((turns - low) / (high - low)).clamp(0, 1)  # 0: stretched, 1: left alone
    return (1 - keep) * frequencies / scaling["factor"] + keep * frequencies


def apply_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turns x [B, H, T, D] by cos, sin [T, D] (or [B, 1, T, D]). Pair i is (x[i], x[i + D/2])."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
