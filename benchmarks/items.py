"""The items of the GPU round: the device's limits, then operators and phases beside them."""

import re

import torch
import torch.nn.functional as F

from benchmarks.graphs import captured
from benchmarks.registry import Bench, item
from minitransformer import KVCache, ModelConfig, Transformer, decode, prefill
from minitransformer.layers import ATTENTION, sdpa_attention
from minitransformer.roofline import (
    DEVICES,
    MODELS,
    Cost,
    decode_cost,
    decode_operators,
    dtype_name,
    kv_bytes_per_token,
    measure_device,
    prefill_cost,
    prefill_operators,
    weight_bytes,
)
from minitransformer.roofline.costs import linear_cost
from minitransformer.roofline.profile import fused, operator_times

TINY = ModelConfig(97, 32, 48, 2, 4, 2, max_position_embeddings=256)
ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}  # errors that are only rounding


@item("limits")
def limits(bench: Bench) -> list[dict]:
    """What this device reaches at most, beside what its datasheet promises."""
    bench.limits = device = measure_device(bench.device, seconds=0.1 if bench.small else 4.0)
    named = (d for name, d in DEVICES.items() if re.search(rf"\b{name}\b", device.name, re.IGNORECASE))
    published = next(named, None)
    measured = {f"{dtype} FLOP/s": peak for dtype, peak in device.peak_flops.items()}
    measured |= {"read bytes/s": device.bandwidth, "copy bytes/s": device.copy_bandwidth}
    promised = {}
    if published is not None:
        promised = {f"{dtype} FLOP/s": peak for dtype, peak in published.peak_flops.items()}
        promised |= {"read bytes/s": published.bandwidth, "copy bytes/s": published.bandwidth}
    rows = [
        {
            "limit": name,
            "measured": value,
            "published": promised.get(name),
            "share": value / promised[name] if name in promised else None,
            "spread": device.spread.get(name.split()[0]),
        }
        for name, value in measured.items()
    ]
    overhead = {"limit": "launch, s", "measured": device.launch_overhead}
    return [*rows, overhead | {"published": None, "share": None, "spread": None}]


@item("parity")
def parity(bench: Bench) -> list[dict]:
    """The model here against itself in float64 on the CPU: whole and chunked prefill, decode, each format."""
    torch.manual_seed(seed := torch.seed() % 2**31)  # fresh numbers each time, and a way to have them again
    config = ModelConfig(199, 128, 192, 3, 8, 2, head_dim=32, max_position_embeddings=512)
    exact = Transformer(config, attention="reference").double().eval()
    ids = torch.randint(0, config.vocab_size, (3, 200))
    rows = []
    for dtype, limit in ROUNDING.items():
        if bench.device.type == "cpu" and dtype == torch.float16:
            continue  # CPUs compute it, but in minutes
        # Kernels are interpreted on a CPU, and tests compare them there already.
        for attention in (*ATTENTION, "triton") if bench.device.type == "cuda" else ATTENTION:
            model = Transformer(config, attention=attention).to(bench.device, dtype).eval()
            exact.load_state_dict(model.state_dict())  # rounded weights: what is left is rounding on the way
            whole = exact(ids)
            for path, logits in _paths(model, ids.to(bench.device), dtype):
                wanted = whole[:, -logits.shape[1] :]
                error = ((logits.double().cpu() - wanted).norm() / wanted.norm()).item()
                row = {"path": path, "attention": attention, "format": dtype_name(dtype), "error": error}
                rows.append(row | {"limit": limit, "seed": seed, "ok": error < limit})
    return rows


def _paths(model: Transformer, ids: torch.Tensor, dtype):
    """The ways to logits of the last token, which all mean the same."""
    yield "no cache", model(ids)
    for chunk_size in (None, 64):
        cache = KVCache(model.config, len(ids), ids.shape[1], dtype, ids.device)
        name = "whole prefill" if chunk_size is None else "chunked prefill"
        yield name, prefill(model, ids, cache, chunk_size=chunk_size)[:, None]
    cache.reset()
    prefill(model, ids[:, :-1], cache)
    yield "decode", decode(model, ids[:, -1:], cache)[:, None]


@item("linear")
def linear(bench: Bench) -> list[dict]:
    """One linear layer over the number of tokens: where reading weights ends and arithmetic begins."""
    inputs, outputs = (64, 96) if bench.small else (4096, 14_336)
    weights = [torch.randn(outputs, inputs, device=bench.device, dtype=bench.dtype) for _ in range(4)]
    size = weights[0].element_size()
    rows = []
    for tokens in (1, 8, 64) if bench.small else (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096):
        x = torch.randn(tokens, inputs, device=bench.device, dtype=bench.dtype)
        took = bench.time(*(captured(lambda w=w, x=x: F.linear(x, w), bench.device) for w in weights))
        cost = linear_cost(tokens, inputs, outputs, size, size)
        rows.append({"tokens": tokens, "intensity": cost.intensity} | bench.beside_limit(cost, took))
    return rows


@item("attention")
def attention(bench: Bench) -> list[dict]:
    """Attention of one decode step over the batch: every sequence reads its own cache, so nothing crosses."""
    H, G, D, S = (4, 2, 16, 32) if bench.small else (32, 8, 128, 4096)
    rows = []
    for batch in (1, 2) if bench.small else (1, 4, 16, 64, 128):
        shape = {"device": bench.device, "dtype": bench.dtype}
        q = torch.randn(batch, H, 1, D, **shape)
        copies = [torch.randn(2, batch, G, S, D, **shape) for _ in range(4 if batch < 64 else 1)]
        ways = [lambda kv=kv, q=q: sdpa_attention(q, kv[0], kv[1]) for kv in copies]
        took = bench.time(*(captured(way, bench.device) for way in ways))
        cost = Cost(4 * batch * H * S * D, (copies[0].numel() + 2 * q.numel()) * q.element_size())
        sizes = {"batch": batch, "context": S, "intensity": cost.intensity}
        rows.append(sizes | bench.beside_limit(cost, took))
    return rows


@item("phases")
def phases(bench: Bench) -> list[dict]:
    """Whole prefill over the prompt's length, decode over batch and context."""
    model, name = random_model(bench)
    config, rows = model.config, []
    lengths = (4, 16) if bench.small else (16, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
    for length in lengths:
        ids, cache = _filled(model, 1, length, bench)
        for chunk in (None, 512) if length == max(lengths) else (None,):
            took = bench.time(lambda c=chunk, ids=ids, cache=cache: _prefill(model, ids, cache, c))
            cost = prefill_cost(config, 1, length, bench.dtype, chunk_size=chunk)
            sizes = {"batch": 1, "tokens": length, "chunk": chunk or length}
            rows.append(_phase(name, "prefill", sizes, length, bench.beside_limit(cost, took)))
    for context in (8, 32) if bench.small else (128, 1024, 8000):
        for batch in (1, 2) if bench.small else (1, 4, 16, 64, 256):
            if not fits(config, batch, context, bench):
                continue
            ids, cache = _filled(model, batch, context + 1, bench)
            took = bench.time(lambda s=context, ids=ids, cache=cache: _decode(model, ids, cache, s))
            cost = decode_cost(config, batch, context, bench.dtype)
            sizes = {"batch": batch, "tokens": context, "chunk": 1}
            rows.append(_phase(name, "decode", sizes, batch, bench.beside_limit(cost, took)))
            del cache
    return rows


@item("operators")
def operators(bench: Bench) -> list[dict]:
    """Both phases operator by operator: measured by torch.profiler, beside each operator's limit."""
    model, name = random_model(bench)
    length, batch = (8, 2) if bench.small else (2048, 16)
    runs = []
    ids, cache = _filled(model, 1, length, bench)
    costs = prefill_operators(model.config, 1, length, bench.dtype)
    runs.append(("prefill", costs, lambda ids=ids, cache=cache: _prefill(model, ids, cache)))
    ids, cache = _filled(model, batch, length + 1, bench)
    costs = decode_operators(model.config, batch, length, bench.dtype)
    runs.append(("decode", costs, lambda ids=ids, cache=cache: _decode(model, ids, cache, length)))
    rows = []
    for phase, costs, run in runs:
        priced = fused(costs)
        for operator, took in operator_times(model, run, repeats=3).items():
            columns = bench.beside_limit(priced[operator], took) if operator in priced else {}
            row = {"model": name, "phase": phase, "operator": operator, "measured_s": took}
            rows.append(row | {"floor_s": None, "share": None, "bound": None} | columns)
    return rows


def random_model(bench: Bench, attention: str = "sdpa") -> tuple[Transformer, str]:
    """Random weights in the shape of the largest public model that leaves room for a cache, and its name."""
    if bench.small:
        return Transformer(TINY, attention=attention).to(bench.device, bench.dtype).eval(), "tiny"
    names = [n for n in ("Llama-3-8B", "Llama-3.2-1B") if fits(MODELS[n], 16, 8192, bench)]
    if not names:
        raise MemoryError(f"{bench.limits.memory_bytes / 1e9:.0f} GB hold no model of this benchmark")
    with torch.device("meta"):
        model = Transformer(MODELS[names[0]], attention=attention)
    model = model.to(bench.dtype).to_empty(device=bench.device).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.02)
    return model, names[0]


def fits(config: ModelConfig, batch: int, context: int, bench: Bench) -> bool:
    """Whether weights and a cache of `batch` sequences leave a fifth of the memory for the rest."""
    cache = batch * context * kv_bytes_per_token(config, bench.dtype)
    return weight_bytes(config, bench.dtype) + cache < 0.8 * bench.limits.memory_bytes


def _filled(model: Transformer, batch: int, length: int, bench: Bench) -> tuple[torch.Tensor, KVCache]:
    """Random ids [batch, length], and a cache with room for them, full of random numbers."""
    cache = KVCache(model.config, batch, length, bench.dtype, bench.device)
    cache.k.normal_()
    cache.v.normal_()
    return torch.randint(0, model.config.vocab_size, (batch, length), device=bench.device), cache


def _prefill(model: Transformer, ids: torch.Tensor, cache: KVCache, chunk_size: int | None = None):
    cache.reset()
    return prefill(model, ids, cache, chunk_size=chunk_size)


def _decode(model: Transformer, ids: torch.Tensor, cache: KVCache, context: int):
    cache.seq_len = context  # the same step every time
    return decode(model, ids[:, :1], cache)


def _phase(model: str, phase: str, sizes: dict, tokens: int, timing: dict) -> dict:
    rate = {"tokens_per_second": tokens / timing["measured_s"]}
    return {"model": model, "phase": phase, **sizes, **timing, **rate}
