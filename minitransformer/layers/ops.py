"""The operations of a layer that there are several implementations of, chosen by one name.

Layers get them as arguments, so that a model says once, where it is made, what it runs on.
"""

from collections.abc import Callable
from dataclasses import dataclass

from minitransformer.config import ModelConfig
from minitransformer.layers.attention import ATTENTION
from minitransformer.layers.feed_forward import swiglu
from minitransformer.layers.norm import rms_norm
from minitransformer.layers.ragged_attention import gathered_attention
from minitransformer.layers.rotary import apply_rope


@dataclass(frozen=True)
class Ops:
    """Implementations of equal meaning; what they take is written where the plain ones are."""

    attend: Callable
    norm: Callable = rms_norm
    rope: Callable = apply_rope
    swiglu: Callable = swiglu
    attend_rows: Callable = gathered_attention
    reads_in_place: bool = False  # whether attend_rows reads the cache without copying its blocks


def choose_ops(attention: str, config: ModelConfig) -> Ops:
    """What a model made with this `attention` runs on.

    Raises ValueError for an unknown name, or where "triton" lacks what the model needs; ImportError where
    there is no Triton.
    """
    if attention == "triton":
        from minitransformer.layers import triton_ops  # the others need no Triton, which not every system has

        triton_ops.require_no_window(config.sliding_window, config.max_position_embeddings)
        return triton_ops.TRITON
    if attention not in ATTENTION:
        raise ValueError(f"attention={attention!r}: choose one of {', '.join([*ATTENTION, 'triton'])}")
    return Ops(ATTENTION[attention])
