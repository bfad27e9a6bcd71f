"""Formulas for the back of a napkin: what limits a chip and a model, before anything runs.

Letters: N weights, W = N * bytes a weight, kv = bytes of cache a token, B sequences, S tokens of context,
T new tokens, F peak FLOP/s, BW bytes/s of memory. Every token costs 2 N FLOPs in the linear layers, one
multiply-add a weight; as everybody does, N counts all weights, also the embedding table, which is only
looked up (6 % of an 8B model). `costs` counts exactly; these fit in a head.

`dtype` is how weights are kept; arithmetic runs in `compute_dtype`, by default the device's usual format.
"""

from minitransformer.config import ModelConfig
from minitransformer.roofline.devices import Device
from minitransformer.roofline.dtypes import dtype_bytes, wide_format
from minitransformer.roofline.models import LatentModel

Model = ModelConfig | LatentModel


def weight_bytes(model: Model, dtype="bf16") -> float:
    """W: bytes of all weights."""
    return model.num_parameters * dtype_bytes(dtype)


def kv_numbers_per_token(model: Model) -> int:
    """Numbers that the cache keeps of each token.

    A key and a value of D numbers, for each of G heads, in each of L layers: 2 L G D. A latent cache
    keeps one vector for all heads instead: L (kv_lora_rank + qk_rope_head_dim).
    """
    if isinstance(model, LatentModel):
        return model.num_hidden_layers * (model.kv_lora_rank + model.qk_rope_head_dim)
    return 2 * model.num_hidden_layers * model.num_key_value_heads * model.head_dim


def kv_bytes_per_token(model: Model, dtype="bf16") -> float:
    """kv: bytes of cache that one more token takes, in a cache of this format."""
    return kv_numbers_per_token(model) * dtype_bytes(dtype)


def max_batch(
    model: Model, device: Device, context_len: int, dtype="bf16", *, cache_dtype=None, usable: float = 0.9
) -> int:
    """The most sequences of `context_len` tokens that fit beside the weights: memory decides, not speed.

    W + B * S * kv <= usable * memory, solved for B. The rest of the memory (a tenth, unless `usable`
    says otherwise) is for activations and the runtime. 0 where not one sequence fits.
    Raises ValueError where the weights alone do not fit.
    """
    _require_positive(context_len=context_len)
    if not 0 < usable <= 1:
        raise ValueError(f"usable is a share of the memory, above 0 and at most 1, got {usable}")
    room = usable * device.memory_bytes - weight_bytes(model, dtype)
    if room < 0:
        raise ValueError(
            f"{_gb(weight_bytes(model, dtype))} of weights do not fit into {usable:.0%} of the "
            f"{_gb(device.memory_bytes)} of {device.name}: use several (n * device) or a smaller dtype"
        )
    return int(room // (context_len * kv_bytes_per_token(model, cache_dtype or wide_format(dtype))))


def require_fits(
    model: Model, device: Device, batch_size: int, context_len: int, dtype="bf16", *, cache_dtype=None
):
    """Raises ValueError, with the numbers, where weights and cache are larger than the device's memory."""
    _require_positive(batch_size=batch_size)
    _require_positive(least=0, context_len=context_len)
    weights = weight_bytes(model, dtype)
    cache = batch_size * context_len * kv_bytes_per_token(model, cache_dtype or wide_format(dtype))
    if weights + cache > device.memory_bytes:
        raise ValueError(
            f"{_gb(weights)} of weights and {_gb(cache)} of cache ({batch_size} sequences of "
            f"{context_len} tokens) do not fit into the {_gb(device.memory_bytes)} of {device.name}"
        )


def critical_batch(
    device: Device, dtype="bf16", *, compute_dtype=None, num_experts: int = 1, experts_per_token: int = 1
) -> float:
    """B*: tokens in a pass from which linear layers are compute-bound instead of memory-bound.

    N weights and B tokens: 2 N B / F seconds of arithmetic, N * bytes / BW seconds of reading. They are
    equal at B* = F * bytes / (2 BW), whatever the model: 295 on an H100 in bf16, 74 with 4-bit weights.
    In a mixture of experts each expert meets experts_per_token / num_experts of the tokens, so that many
    times more are needed. Tokens of a prefill count as well as sequences of a decode step.
    """
    tokens_per_expert = device.peak(compute_dtype) * dtype_bytes(dtype) / (2 * device.bandwidth)
    return tokens_per_expert * num_experts / experts_per_token


def attention_intensity(model: Model, cache_dtype="bf16") -> float:
    """FLOPs a byte of cache read in a decode step: no batch size in it, each sequence has its own cache.

    A cached token is used by H query heads, a multiply-add with its key and one with its value:
    4 H D FLOPs on 2 G D numbers, or 2 H / G a number: in bf16, the heads of a group (1 for MHA).
    A latent vector serves as key of all H heads and, without its position part, as value:
    2 H (2 kv_lora_rank + qk_rope_head_dim) FLOPs (DeepSeek-V2 after weight absorption: 242).
    """
    if isinstance(model, LatentModel):
        latent, rope = model.kv_lora_rank, model.qk_rope_head_dim
        per_number = 2 * model.num_attention_heads * (2 * latent + rope) / (latent + rope)
    else:
        per_number = 2 * model.group_size
    return per_number / dtype_bytes(cache_dtype)


def crossover_context(model: ModelConfig, device: Device, *, compute_dtype=None, cache_dtype="bf16") -> float:
    """S*: context at which a decode step reads its cache for as long as its linear layers compute.

    2 N B / F = B * S * kv / BW, and B falls out: S* = 2 N BW / (F kv). In a batch beyond B*, contexts
    shorter than this make the step mostly compute-bound; longer ones keep it memory-bound at any batch.
    """
    compute_per_token = 2 * _dense(model).num_parameters / device.peak(compute_dtype)
    return compute_per_token * device.bandwidth / kv_bytes_per_token(model, cache_dtype)


def ttft_floor(
    model: ModelConfig, device: Device, prompt_len: int, dtype="bf16", *, cached_len=0, compute_dtype=None
) -> float:
    """Seconds to the first token at least: max(2 N T / F, W / BW), T the tokens that are not cached.

    Attention is left out (at 8k tokens another 8 % of a 70B model's FLOPs, growing with the prompt).
    """
    new = prompt_len - cached_len
    _require_positive(uncached_tokens=new)
    require_fits(_dense(model), device, 1, prompt_len, dtype)
    compute = 2 * model.num_parameters * new / device.peak(compute_dtype)
    return max(compute, weight_bytes(model, dtype) / device.bandwidth)


def tpot_floor(
    model: ModelConfig,
    device: Device,
    batch_size: int,
    context_len: int,
    dtype="bf16",
    *,
    cache_dtype=None,
    compute_dtype=None,
) -> float:
    """Seconds a decode step at least: B S kv / BW for attention, plus max(2 N B / F, W / BW) for the rest.

    A sum, because a layer's attention and its linear part depend on each other; each is at best as fast
    as its own limit. Raises ValueError where weights and cache do not fit.
    """
    require_fits(_dense(model), device, batch_size, context_len, dtype, cache_dtype=cache_dtype)
    cache = batch_size * context_len * kv_bytes_per_token(model, cache_dtype or wide_format(dtype))
    compute = 2 * model.num_parameters * batch_size / device.peak(compute_dtype)
    return cache / device.bandwidth + max(compute, weight_bytes(model, dtype) / device.bandwidth)


def prefill_rate(model: ModelConfig, device: Device, *, efficiency: float = 0.5, compute_dtype=None) -> float:
    """Prompt tokens a second of a busy prefill machine: F / 2N at this share of the peak."""
    return efficiency * device.peak(compute_dtype) / (2 * _dense(model).num_parameters)


def decode_rate(
    model: ModelConfig, device: Device, batch_size: int, context_len: int, dtype="bf16", **formats
) -> float:
    """New tokens a second of a decode machine with this batch, at most: B / `tpot_floor`."""
    return batch_size / tpot_floor(model, device, batch_size, context_len, dtype, **formats)


def dollars_per_million_tokens(device: Device, tokens_per_second: float) -> float:
    """price an hour / (3600 * tokens a second) * 1e6, for a machine that is never idle."""
    if device.price_per_hour is None:
        raise ValueError(f"{device.name} has no price an hour: replace(device, price_per_hour=...)")
    if not tokens_per_second > 0:
        raise ValueError(f"tokens_per_second must be above zero, got {tokens_per_second}")
    return device.price_per_hour / 3600 / tokens_per_second * 1e6


def transfer_ratio(
    model: ModelConfig,
    device: Device,
    network_bandwidth: float,
    *,
    efficiency: float = 0.5,
    cache_dtype="bf16",
    compute_dtype=None,
) -> float:
    """Seconds to send a prompt's cache to another machine, over the seconds to compute it.

    T kv / BW_net over 2 N T / F: the length falls out, kv F / (2 N BW_net). network_bandwidth is in
    bytes a second (400 Gbit/s is 50e9); `efficiency` is the share of its peak that prefill reaches.
    """
    _require_positive(network_bandwidth=network_bandwidth)
    rate = prefill_rate(model, device, efficiency=efficiency, compute_dtype=compute_dtype)
    return rate * kv_bytes_per_token(model, cache_dtype) / network_bandwidth


def machine_ratio(input_len: float, output_len: float, prefill_rate: float, decode_rate: float) -> float:
    """Prefill machines for each decode machine, so that neither waits for the other.

    A request takes input_len / prefill_rate seconds of one, output_len / decode_rate of the other.
    """
    return (input_len / prefill_rate) / (output_len / decode_rate)


def experts_read(num_experts: int, experts_per_token: int, batch_size: int) -> float:
    """Experts of a layer that a decode step has to read, on average: E (1 - (1 - k / E)^B).

    One token leaves an expert alone with chance 1 - k / E, all B independent tokens with that to the B.
    """
    return num_experts * (1 - (1 - experts_per_token / num_experts) ** batch_size)


def _require_positive(*, least: int = 1, **sizes):
    for name, size in sizes.items():
        if not size >= least:
            raise ValueError(f"{name} must be at least {least}, got {size}")


def _gb(count: float) -> str:
    gb = count / 1e9
    return f"{gb:.3g} GB" if gb < 1000 else f"{gb:,.0f} GB"


def _dense(model: Model) -> ModelConfig:
    """Refuses a mixture of experts where a formula would take all its weights for active ones."""
    if isinstance(model, LatentModel):
        raise ValueError("this formula is for dense models: a token of a mixture meets only some weights")
    return model
