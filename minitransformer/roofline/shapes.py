"""Model shapes of equal size: what their matrix products take on a chip, by `tiles`.

Two models of as many weights do as much arithmetic a token, but their products are cut into other tiles.
Everything here prices the linear layers of one pass and nothing else, with one tile for all of them.
It does not know which of two shapes learns better.
"""

from collections.abc import Iterable
from dataclasses import replace

from minitransformer.config import ModelConfig
from minitransformer.roofline.devices import Device
from minitransformer.roofline.tiles import Tile, matmul_seconds


def linear_products(config: ModelConfig, tokens: int) -> dict[str, tuple[int, int, int, int]]:
    """(M, N, K, how often) of the linear layers in a pass over `tokens`, with logits of every token.

    Queries, keys and values are one product, gate and up another, as engines fuse them.
    """
    E, F, L = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    return {
        "qkv_proj": (tokens, config.q_size + 2 * config.kv_size, E, L),
        "o_proj": (tokens, E, config.q_size, L),
        "gate_up_proj": (tokens, 2 * F, E, L),
        "down_proj": (tokens, E, F, L),
        "lm_head": (tokens, config.vocab_size, E, 1),
    }


def linear_seconds(config: ModelConfig, tokens: int, tile: Tile, device: Device, num_sms: int) -> float:
    """Seconds that `tiles` predicts for the linear layers of one pass, one after another."""
    products = linear_products(config, tokens).values()
    return sum(times * matmul_seconds(*mnk, tile, device, num_sms) for *mnk, times in products)


def linear_share(config: ModelConfig, tokens: int, tile: Tile, device: Device, num_sms: int) -> float:
    """Share of the peak that the linear layers of a pass reach by that prediction."""
    flops = sum(2 * M * N * K * times for M, N, K, times in linear_products(config, tokens).values())
    return flops / device.peak() / linear_seconds(config, tokens, tile, device, num_sms)


def same_size_shapes(
    base: ModelConfig, hidden_sizes: Iterable[int], *, ffn_step: int = 64, within: float = 0.01
) -> list[ModelConfig]:
    """Shapes with as many weights as `base` (up to the share `within`), one for each hidden size that can.

    Layers, vocabulary, head size and the number of query heads that share a key/value head stay; heads
    follow the hidden size, and the feed-forward width (a multiple of `ffn_step`) takes up what is left.
    A hidden size that is no whole number of groups of heads has no shape.
    """
    group = base.group_size * base.head_dim
    shapes = []
    for hidden in hidden_sizes:
        if hidden % group == 0:
            shape = _with_ffn(base, hidden, ffn_step)
            if shape and abs(shape.num_parameters / base.num_parameters - 1) <= within:
                shapes.append(shape)
    return shapes


def _with_ffn(base: ModelConfig, hidden: int, step: int) -> ModelConfig | None:
    """`base` with this hidden size and the feed-forward width that keeps its weights nearest the same."""
    heads = hidden // base.head_dim
    shape = {"hidden_size": hidden, "num_attention_heads": heads}
    shape |= {"num_key_value_heads": heads // base.group_size}
    least = replace(base, **shape, intermediate_size=step)
    spare = base.num_parameters - least.num_parameters
    steps = 1 + round(spare / (3 * base.num_hidden_layers * hidden * step))
    return replace(least, intermediate_size=steps * step) if steps > 0 else None
