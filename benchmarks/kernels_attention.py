"""Items of the GPU round for the attention kernels: right first, then fast.

Each stands beside the limit and beside the fastest of PyTorch's backends for the same call, timed in turns;
a ratio above 1 says that our kernel is the faster one. Inputs of several hundred megabytes find nothing of
themselves in a cache.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.graphs import captured
from benchmarks.kernels import LIMITS, against, relative_error
from benchmarks.registry import Bench, item
from minitransformer.kernels import (
    flash_attention,
    flash_attention_reference,
    flash_decode,
    flash_decode_reference,
    paged_attention,
    paged_attention_reference,
    paged_prefill,
    paged_prefill_reference,
)
from minitransformer.kernels.attention_configs import decode_configs, decode_shared_bytes
from minitransformer.kernels.split_keys import rows_of_tile
from minitransformer.kernels.splits import choose_num_splits, occupancy, places
from minitransformer.kernels.tuning import Config
from minitransformer.roofline import Cost

BACKENDS = ("CUDNN_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "MATH")
HEADS = (32, 8, 128)  # query heads, key/value heads, head dim of a model of about 8 billion parameters
CHECKED = 128  # queries at each end that are compared with float64: all scores would take gigabytes
BLOCK = 16  # tokens of a cache block


@item("flash_attention")
def prefill_attention(bench: Bench) -> list[dict]:
    """Causal attention of whole prompts, 16k tokens in all, against the fastest of PyTorch's backends."""
    rows = []
    for tokens in (64,) if bench.small else (2048, 4096, 8192, 16_384):
        batch, heads, D = (1, 1, 64) if bench.small else (16_384 // tokens, 16, 128)
        q, k, v = (_randn(bench, batch, heads, tokens, D) for _ in range(3))
        error = _prefill_error(q, k, v)
        call = lambda q=q, k=k, v=v: F.scaled_dot_product_attention(q, k, v, is_causal=True)  # noqa: E731
        timing = _timing(bench, lambda q=q, k=k, v=v: flash_attention(q, k, v), call)
        seen = tokens * (tokens + 1) // 2  # pairs of a query and a key that it sees
        cost = Cost(4 * batch * heads * seen * D, 4 * q.nbytes)
        rate = {"flops": cost.flops / timing["measured_s"], "library_flops": cost.flops / timing["library_s"]}
        limit = bench.beside_limit(cost, timing["measured_s"])
        row = {"batch": batch, "tokens": tokens, "heads": heads, "head_dim": D} | timing | limit | rate
        rows.append(row | _verdict(timing["times_as_fast"], 0.90, error, q.dtype))
    return rows


@item("flash_decode")
def decode_attention(bench: Bench) -> list[dict]:
    """One query a sequence over a contiguous cache: share of the copy bandwidth, and against PyTorch."""
    rows = []
    for batch, context in _caches(bench):
        q, k, v = _decode_inputs(bench, batch, context)
        error = relative_error(
            flash_decode(q, k, v), flash_decode_reference(q.double(), k.double(), v.double())
        )
        timing = _timing(bench, lambda q=q, k=k, v=v: flash_decode(q, k, v), _grouped(q, k, v))
        rows.append(_decode_row(bench, batch, context, timing, error))
    return rows


@item("paged_attention")
def paged_decode_attention(bench: Bench) -> list[dict]:
    """The same through a block table, blocks in random order; PyTorch has its cache in one piece."""
    rows = []
    for batch, context in _caches(bench):
        q, k, v = _decode_inputs(bench, batch, context)
        blocks = -(-context // BLOCK)
        table = torch.randperm(batch * blocks, device=bench.device).reshape(batch, blocks).to(torch.int32)
        lengths = torch.full((batch,), context, dtype=torch.int32, device=bench.device)
        cache = [_randn(bench, batch * blocks, BLOCK, *_heads(bench)[1:]) for _ in range(2)]
        paged = (q[:, :, 0], *cache, table, lengths)
        exact = paged_attention_reference(q[:, :, 0].double(), *(x.double() for x in cache), table, lengths)
        error = relative_error(paged_attention(*paged), exact)
        timing = _timing(bench, lambda paged=paged: paged_attention(*paged), _grouped(q, k, v))
        rows.append(_decode_row(bench, batch, context, timing, error))
    return rows


@item("paged_prefill")
def paged_prompt_pieces(bench: Bench) -> list[dict]:
    """Pieces of prompts over cached tokens, through a block table, against our kernel for contiguous ones.

    The table costs a look-up for each key; what that takes is what a serving step pays for its blocks.
    """
    rows = []
    for batch, cached, tokens in (
        [(2, 20, 12)] if bench.small else [(16, 0, 1024), (8, 2048, 512), (4, 8192, 512)]
    ):
        H, G, D = _heads(bench)
        context = cached + tokens
        blocks = -(-context // BLOCK)
        q = _randn(bench, batch, tokens, H, D)
        cache = [_randn(bench, batch * blocks, BLOCK, G, D) for _ in range(2)]
        table = torch.randperm(batch * blocks, device=bench.device).reshape(batch, blocks).to(torch.int32)
        positions = torch.arange(cached, context, device=bench.device).expand(batch, -1).contiguous()
        paged = (q, *cache, table, positions)
        whole = [x[table.long()].flatten(1, 2)[:, :context].transpose(1, 2).contiguous() for x in cache]
        few = slice(-min(CHECKED, tokens), None)
        exact = paged_prefill_reference(
            q[:1, few].double(), *(x.double() for x in cache), table[:1], positions[:1, few]
        )
        error = relative_error(paged_prefill(*paged)[:1, few], exact)
        in_one_piece = lambda q=q.transpose(1, 2), kv=whole: flash_attention(q, *kv)  # noqa: E731
        ours = lambda paged=paged: paged_prefill(*paged)  # noqa: E731
        timing = against(bench, ours, {"flash_attention": in_one_piece})
        pairs = sum(range(cached + 1, context + 1))  # of a query and a key that it sees
        moved = (2 * q.numel() + 2 * batch * context * G * D) * bench.dtype.itemsize
        limit = bench.beside_limit(Cost(4 * batch * H * D * pairs, moved), timing["measured_s"])
        row = {"batch": batch, "cached": cached, "tokens": tokens} | timing | limit
        rows.append(row | _verdict(timing["times_as_fast"], 0.85, error, bench.dtype))
    return rows


@item("num_splits")
def num_splits(bench: Bench) -> list[dict]:
    """flash_decode over the number of splits, beside what the model of busy SMs says of each.

    In blocks so large that one program fills the shared memory of an SM, as the model has it.
    """
    config = _largest(bench)
    at_once = 4 if bench.small else places(bench.device, *_needs(bench, config))
    sweep = (1, 2) if bench.small else (1, 2, 4, 8, 12, 16, 17, 24, 32, 33, 48, 64, 96, 128)
    rows = []
    for batch, context in _caches(bench)[:2]:
        q, k, v = _decode_inputs(bench, batch, context)
        exact = flash_decode_reference(q.double(), k.double(), v.double())
        programs, blocks = batch * k.shape[1], -(-context // config["BLOCK_S"])
        chosen = choose_num_splits(programs, at_once, blocks)
        for splits in sorted({*sweep, chosen}):
            run = partial(flash_decode, q, k, v, num_splits=splits, config=config)
            error = relative_error(run(), exact)
            model = occupancy(programs, at_once, blocks, splits)
            row = {"batch": batch, "context": context, "places": at_once, "splits": splits}
            row |= {"chosen": splits == chosen, "waves": model.waves, "busy": model.busy}
            row |= bench.beside_limit(
                _decode_cost(bench, batch, context), bench.time(captured(run, bench.device))
            )
            rows.append(row | {"error": error, "ok": error < LIMITS[q.dtype]})
    return rows


def _largest(bench: Bench) -> Config:
    """The configuration of a decode step that takes the most shared memory among those that fit here."""
    configs = decode_configs(_heads(bench)[2], bench.dtype)
    if bench.device.type == "cuda":
        most = torch.cuda.get_device_properties(bench.device).shared_memory_per_block_optin
        configs = [config for config in configs if _needs(bench, config)[0] <= most]
    return max(configs, key=lambda config: _needs(bench, config)[0])


def _needs(bench: Bench, config: Config) -> tuple[int, int]:
    """Bytes of shared memory and warps of one program of flash_decode."""
    H, G, D = _heads(bench)
    return decode_shared_bytes(config, rows_of_tile(H // G), D, bench.dtype), config.num_warps


def _caches(bench: Bench) -> list[tuple[int, int]]:
    """Batch and context: 64k cached tokens in one sequence or many, and more than that."""
    if bench.small:
        return [(1, 70), (2, 33)]
    return [(1, 65_536), (4, 16_384), (16, 4096), (64, 1024), (64, 4096)]


def _heads(bench: Bench) -> tuple[int, int, int]:
    return (2, 1, 64) if bench.small else HEADS


def _decode_inputs(bench: Bench, batch: int, context: int) -> tuple[torch.Tensor, ...]:
    H, G, D = _heads(bench)
    q = _randn(bench, batch, H, 1, D)
    return q, *(_randn(bench, batch, G, context, D) for _ in range(2))


def _decode_cost(bench: Bench, batch: int, context: int) -> Cost:
    """Every key and value read once, every query read and written."""
    H, G, D = _heads(bench)
    numbers = 2 * batch * G * context * D + 2 * batch * H * D
    return Cost(4 * batch * H * context * D, numbers * bench.dtype.itemsize)


def _decode_row(bench: Bench, batch: int, context: int, timing: dict, error: float) -> dict:
    cost = _decode_cost(bench, batch, context)
    share = cost.bytes / bench.limits.copy_bandwidth / timing["measured_s"]
    row = dict(zip(("query_heads", "kv_heads", "head_dim"), _heads(bench), strict=True))
    row = {"batch": batch, "context": context} | row
    row |= timing | bench.beside_limit(cost, timing["measured_s"]) | {"share_of_copy": share}
    target = 0.70 if batch == 1 else 0.85
    verdict = _verdict(share, target, error, bench.dtype)
    verdict["reached"] = verdict["reached"] and timing["times_as_fast"] >= 1
    return row | verdict


def _verdict(value: float, target: float, error: float, dtype: torch.dtype) -> dict:
    """A missed target is no failure of the item; a wrong result is."""
    return {"target": target, "reached": value >= target, "error": error, "ok": error < LIMITS[dtype]}


def _timing(bench: Bench, ours: Callable, library: Callable) -> dict:
    """Ours against PyTorch's backends."""
    return against(bench, ours, _backends(library))


def _backends(call: Callable) -> dict[str, Callable]:
    """The ways of scaled_dot_product_attention that can run this call here, by name."""

    def limited_to(name: str) -> Callable:
        def run():
            with sdpa_kernel(getattr(SDPBackend, name)):
                return call()

        return run

    ways = {}
    for name in BACKENDS:
        if name == "MATH" and ways:
            continue  # it writes every score to memory: only where nothing else runs
        run = limited_to(name)
        try:
            run()
            ways[name] = run
        except RuntimeError:  # a backend that does not take these shapes, or is not in this PyTorch
            continue
    return ways


def _grouped(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Callable:
    """PyTorch's best call for one query: the heads of a group as queries of one head, keys read once."""
    grouped = q.reshape(len(q), k.shape[1], -1, q.shape[3])
    return lambda: F.scaled_dot_product_attention(grouped, k, v)


def _prefill_error(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> float:
    """The larger error of the first and of the last queries."""
    out, n = flash_attention(q, k, v), CHECKED
    wide = [x.double() for x in (q[:1, :2], k[:1, :2], v[:1, :2])]  # of one sequence, two heads
    first = flash_attention_reference(*(x[:, :, :n] for x in wide))
    last = flash_attention_reference(wide[0][:, :, -n:], *wide[1:])
    return max(relative_error(out[:1, :2, :n], first), relative_error(out[:1, :2, -n:], last))


def _randn(bench: Bench, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, device=bench.device, dtype=bench.dtype)
