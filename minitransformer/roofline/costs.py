"""What operators and phases do: FLOPs, and bytes moved, from shapes and number formats alone.

What is counted:
- A multiply-add is two FLOPs. Matrix products are counted exactly; element-wise operators at the few
  operations a number that their functions state, because their bytes decide anyway.
- An operator reads each of its inputs from memory once and writes its result once, and nothing stays in
  a cache from one operator to the next. Attention is one operator: its scores are never written (as in
  FlashAttention), and the query heads of a group share one reading of their keys and values.
- Where work is causal, a token is charged only for the tokens it may see.
- Indices, rotation tables and the scales of quantized weights are too small to count.

Shapes are sizes and not tensors, so that a model that fits on no machine at hand can be priced.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real

from minitransformer.config import ModelConfig
from minitransformer.roofline.dtypes import dtype_bytes, wide_format

# The linear layers and attention, apart: the work of one is within tokens, of the other between them.
LINEAR = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj", "lm_head")
ATTENTION = ("scores", "softmax", "values")
MATMULS = (*LINEAR, "scores", "values")


@dataclass(frozen=True)
class Cost:
    """Work, without a device: `flops` operations (a multiply-add is two) and `bytes` moved.

    Costs add up (`a + b`, `sum(costs, Cost())`) and scale (`3 * a`).
    """

    flops: float = 0
    bytes: float = 0

    def __post_init__(self):
        if self.flops < 0 or self.bytes < 0:
            raise ValueError(f"a cost is never negative: {self.flops} FLOPs, {self.bytes} bytes")

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, times: float) -> "Cost":
        return Cost(self.flops * times, self.bytes * times)

    __rmul__ = __mul__

    @property
    def intensity(self) -> float:
        """FLOPs a byte moved: where the work stands on the roofline's horizontal axis."""
        return self.flops / self.bytes if self.bytes else float("inf")


# --- operators. `rows` counts tokens; `*_bytes` are bytes a number ------------------------------------


def embedding_cost(rows: int, size: int, weight_bytes: float, act_bytes: float) -> Cost:
    """Looks a vector up for each token: only the rows asked for are read."""
    return Cost(0, rows * size * (weight_bytes + act_bytes))


def linear_cost(
    rows: int, inputs: int, outputs: int, weight_bytes: float, act_bytes: float, bias: bool = False
) -> Cost:
    """[rows, inputs] @ [inputs, outputs]: the weights are read once, however many rows there are.

    That is why the intensity grows with the number of tokens: 2 * rows FLOPs for every weight read.
    """
    weights = (inputs + bias) * outputs
    return Cost(2 * rows * inputs * outputs, weights * weight_bytes + rows * (inputs + outputs) * act_bytes)


def norm_cost(rows: int, size: int, act_bytes: float) -> Cost:
    """RMSNorm: square, add, scale, weight: 4 FLOPs a number; read, write, and one weight a column."""
    return Cost(4 * rows * size, (2 * rows + 1) * size * act_bytes)


def rope_cost(rows: int, size: int, act_bytes: float) -> Cost:
    """Rotation: two products and a sum a number; read and written."""
    return Cost(3 * rows * size, 2 * rows * size * act_bytes)


def residual_cost(rows: int, size: int, act_bytes: float) -> Cost:
    """x + y: two read, one written."""
    return Cost(rows * size, 3 * rows * size * act_bytes)


def swiglu_cost(rows: int, size: int, act_bytes: float) -> Cost:
    """silu(gate) * up: exponential, sum, quotient, two products: 5 FLOPs; two read, one written."""
    return Cost(5 * rows * size, 3 * rows * size * act_bytes)


def cache_write_cost(rows: int, kv_size: int, act_bytes: float, cache_bytes: float) -> Cost:
    """Keys and values of new tokens: read as they were computed, written to the cache."""
    return Cost(0, 2 * rows * kv_size * (act_bytes + cache_bytes))


def scores_cost(config: ModelConfig, rows, pairs, keys, act_bytes: float, cache_bytes: float) -> Cost:
    """q k^T for `pairs` of a token and one it sees; the `keys` are read once for all heads of a group.

    One row against S keys: 2 H D S FLOPs for G D S numbers read, 2 H / G FLOPs a number. More rows that
    share the keys (prefill) raise that; more sequences (batch) do not, each brings its own keys.
    """
    read = rows * config.q_size * act_bytes + keys * config.kv_size * cache_bytes
    return Cost(2 * config.q_size * pairs, read)


def softmax_cost(config: ModelConfig, pairs: int) -> Cost:
    """Scale, maximum, difference, exponential, sum: 5 FLOPs a score, none of which reaches memory."""
    return Cost(5 * config.num_attention_heads * pairs, 0)


def values_cost(config: ModelConfig, rows, pairs, keys, act_bytes: float, cache_bytes: float) -> Cost:
    """Attention weights times values: the mirror image of the scores, with the result written."""
    return scores_cost(config, rows, pairs, keys, act_bytes, cache_bytes)


def attended_pairs(new: int, past: int, window: int | None = None) -> int:
    """How many pairs of a token and one it sees there are for `new` tokens after `past` ones.

    Token t = 1..new sees itself and all before it, past + t tokens, or the last `window` of those.
    """
    pairs = new * past + new * (new + 1) // 2
    if window is None:
        return pairs
    first, last = max(past, window) + 1, past + new  # the tokens that would see more than the window
    hidden = max(last - first + 1, 0)
    return pairs - hidden * (first + last - 2 * window) // 2


def attended_keys(new: int, past: int, window: int | None = None) -> int:
    """How many keys `new` tokens after `past` ones read between them."""
    return past + new if window is None else min(past + new, window + new - 1)


# --- phases -------------------------------------------------------------------------------------------


def prefill_operators(
    config: ModelConfig,
    batch_size: int,
    seq_len: int | Sequence[int],
    dtype,
    *,
    cached_len: int | Sequence[int] = 0,
    chunk_size: int | None = None,
    cache_dtype=None,
    act_dtype=None,
    last_only: bool = True,
    causal: bool = True,
) -> dict[str, Cost]:
    """The cost of reading a prompt, by operator, each summed over all layers.

    seq_len      new tokens of each sequence; a list of `batch_size` for a ragged batch
    dtype        format of the weights
    cached_len   tokens that are already in the cache (a prefix, or earlier turns), also as a list
    chunk_size   new tokens a forward pass; each pass reads the weights and the cached tokens again
    cache_dtype  format of the cache; act_dtype: of activations. None: that of the weights, or bf16
                 beside weights of 8 bits or less
    last_only    logits of the last position only, in each pass, as generation computes them
    causal       False: also the work above the diagonal, as a kernel does that masks what it has
                 multiplied (and as PyTorch's FlopCounterMode counts every kernel)
    Raises ValueError for sizes below one (cached_len: below zero), or lists of another length.
    """
    sequences = _sequences(batch_size, seq_len, cached_len)
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    formats = [
        dtype_bytes(f) for f in (dtype, act_dtype or wide_format(dtype), cache_dtype or wide_format(dtype))
    ]
    total: dict[str, Cost] = {}
    while sequences:
        step = [(count, min(new, chunk_size or new), past) for count, new, past in sequences]
        for name, cost in _forward(config, step, last_only, causal, *formats).items():
            total[name] = total.get(name, Cost()) + cost
        sequences = [
            (count, new - chunk_size, past + chunk_size)
            for count, new, past in sequences
            if chunk_size is not None and new > chunk_size
        ]
    return total


def decode_operators(
    config: ModelConfig, batch_size: int, context_len: int | Sequence[int], dtype, **options
) -> dict[str, Cost]:
    """The cost of one decode step, by operator: one new token for each of `batch_size` sequences.

    context_len counts the tokens in the cache before the step; a list for a ragged batch. The options
    are those of `prefill_operators`: a decode step is a prefill of one token, only priced at a place
    where everything read serves a single row.
    """
    return prefill_operators(config, batch_size, 1, dtype, cached_len=context_len, **options)


def prefill_cost(
    config: ModelConfig, batch_size: int, seq_len: int | Sequence[int], dtype, **options
) -> Cost:
    """The whole prefill: the sum of `prefill_operators`, whose options it takes."""
    return sum(prefill_operators(config, batch_size, seq_len, dtype, **options).values(), Cost())


def decode_cost(
    config: ModelConfig, batch_size: int, context_len: int | Sequence[int], dtype, **options
) -> Cost:
    """One whole decode step: the sum of `decode_operators`, whose options it takes."""
    return sum(decode_operators(config, batch_size, context_len, dtype, **options).values(), Cost())


def matmul_flops(operators: dict[str, Cost]) -> float:
    """FLOPs of the matrix products alone, as PyTorch's FlopCounterMode counts them."""
    return sum(operators[name].flops for name in MATMULS)


def pass_operators(
    config: ModelConfig,
    tokens: int,
    pairs: int,
    keys: int,
    logits: int,
    dtype,
    *,
    cache_dtype=None,
    act_dtype=None,
) -> dict[str, Cost]:
    """One pass through the model, by operator, from what its sequences add up to, whatever they are.

    tokens   new tokens of all sequences
    pairs    pairs of a new token and one it sees (`attended_pairs`), keys those read (`attended_keys`)
    logits   tokens whose logits are computed: one a sequence in generation
    Linear in all four, so a scheduler's step is priced without a look at each sequence again.
    """
    formats = (dtype, act_dtype or wide_format(dtype), cache_dtype or wide_format(dtype))
    return _operators(config, tokens, pairs, keys, logits, *[dtype_bytes(format) for format in formats])


def _forward(
    config: ModelConfig, sequences, last_only: bool, causal: bool, weight: float, act: float, cache: float
) -> dict[str, Cost]:
    """One pass through the model over `sequences`: (how many, new tokens, cached tokens) of each kind."""
    window = config.sliding_window if causal else None
    rows = sum(count * new for count, new, _ in sequences)
    keys = sum(count * attended_keys(new, past, window) for count, new, past in sequences)
    pairs = sum(
        count * (attended_pairs(new, past, window) if causal else new * (past + new))
        for count, new, past in sequences
    )
    logits = sum(count for count, _, _ in sequences) if last_only else rows
    return _operators(config, rows, pairs, keys, logits, weight, act, cache)


def _operators(
    config: ModelConfig, rows: int, pairs: int, keys: int, logits: int, weight, act, cache
) -> dict[str, Cost]:
    L, E, F = config.num_hidden_layers, config.hidden_size, config.intermediate_size
    q_size, kv_size = config.q_size, config.kv_size
    layer = {
        "norm": 2 * norm_cost(rows, E, act),
        "qkv_proj": linear_cost(rows, E, q_size + 2 * kv_size, weight, act, config.attention_bias),
        "rope": rope_cost(rows, q_size + kv_size, act),
        "cache_write": cache_write_cost(rows, kv_size, act, cache),
        "scores": scores_cost(config, rows, pairs, keys, act, cache),
        "softmax": softmax_cost(config, pairs),
        "values": values_cost(config, rows, pairs, keys, act, cache),
        "o_proj": linear_cost(rows, q_size, E, weight, act, config.attention_out_bias),
        "residual": 2 * residual_cost(rows, E, act),
        "gate_up_proj": linear_cost(rows, E, 2 * F, weight, act),
        "swiglu": swiglu_cost(rows, F, act),
        "down_proj": linear_cost(rows, F, E, weight, act),
    }
    if config.qk_norm:  # each head is a row of its own
        layer["norm"] += norm_cost(rows * config.num_attention_heads, config.head_dim, act)
        layer["norm"] += norm_cost(rows * config.num_key_value_heads, config.head_dim, act)
    total = {name: L * cost for name, cost in layer.items()}
    total["norm"] += norm_cost(logits, E, act)
    embedding = embedding_cost(rows, E, weight, act)
    return {
        "embedding": embedding,
        **total,
        "lm_head": linear_cost(logits, E, config.vocab_size, weight, act),
    }


def _sequences(batch_size: int, seq_len, cached_len) -> list[tuple[int, int, int]]:
    """(how many, new tokens, cached tokens) of each kind of sequence in the batch."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    new = _lengths("seq_len", seq_len, batch_size, least=1)
    past = _lengths("the number of cached tokens", cached_len, batch_size, least=0)
    return [(count, n, p) for (n, p), count in Counter(zip(new, past, strict=True)).items()]


def _lengths(name: str, given: int | Sequence[int], batch_size: int, least: int) -> list[int]:
    """A length for each sequence, from one for all or a list."""
    lengths = [given] * batch_size if isinstance(given, Real) else list(given)
    if len(lengths) != batch_size:
        raise ValueError(f"{name} lists {len(lengths)} lengths for a batch of {batch_size}")
    wrong = [n for n in lengths if not isinstance(n, Integral) or n < least]
    if wrong:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {wrong[0]}")
    return [int(n) for n in lengths]
