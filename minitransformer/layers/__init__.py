"""The parts of a transformer layer: norm, rotary embedding, attention, feed-forward."""

from minitransformer.layers.attention import ATTENTION, Attention, reference_attention, sdpa_attention
from minitransformer.layers.feed_forward import SwiGLU
from minitransformer.layers.linear import Linear
from minitransformer.layers.norm import RMSNorm
from minitransformer.layers.ops import Ops, choose_ops
from minitransformer.layers.rotary import RotaryEmbedding, apply_rope

__all__ = [
    "ATTENTION",
    "Attention",
    "Linear",
    "Ops",
    "RMSNorm",
    "RotaryEmbedding",
    "SwiGLU",
    "apply_rope",
    "choose_ops",
    "reference_attention",
    "sdpa_attention",
]
