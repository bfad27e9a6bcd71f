"""Checks of exercise 02, KV cache: the tasks in which code is written or mended.

The two about memory in numbers, 02.kv_bytes and 02.fit, are in kv_memory.py, 02.generate is in
kv_generate.py; what answers are compared with is in kv_reference.py.
"""

import itertools
import math

import torch

from minitransformer.course.checking import (
    expect,
    expect_close,
    expect_equal,
    expect_raises,
    task,
)
from minitransformer.course.checks import kv_generate, kv_memory  # noqa: F401, registers their tasks
from minitransformer.course.checks.kv_reference import Stack, ragged_attention, written

# --- 02.cache -------------------------------------------------------------------------------------------


@task("02.cache", "a cache with reserved slots")
def cache_class(answer, rng):
    for shape in [(2, 3, 2, 12, 4), (1, 1, 1, 5, 2), (3, 2, 4, 40, 8)]:
        feed_in_pieces(answer, rng, shape, torch.float32)
    feed_in_pieces(answer, rng, (2, 2, 2, 9, 4), torch.float16)
    refuse_what_does_not_fit(answer, rng)
    select_rows(answer, rng)


def new_tokens(rng, shape, count: int, dtype=torch.float32):
    """k and v [B, G, count, D] for every layer."""
    L, B, G, _, D = shape
    return [tuple(rng.randn(B, G, count, D, dtype=dtype) for _ in range(2)) for _ in range(L)]


def feed_in_pieces(answer, rng, shape, dtype):
    """Steps of several sizes, with a slot left over; in each, every layer must see all of its past."""
    L, B, G, S, D = shape
    cache = answer(*shape, dtype)
    given = f"Cache({L}, {B}, {G}, {S}, {D}, {dtype})"
    check_nbytes(cache.nbytes, shape, dtype, given)
    past, held = [([], []) for _ in range(L)], 0
    for count in [n for n in (3, 1, S - 6, 1) if n > 0]:
        for layer, step in enumerate(new_tokens(rng, shape, count, dtype)):
            where = (
                f"{given}, {count} new {'token' if count == 1 else 'tokens'} behind {held} in layer {layer}"
            )
            early = "update must leave seq_len alone: all layers of one step write to the same slots."
            likely = [(held + n * count, early) for n in range(1, layer + 1)]
            expect_equal(cache.seq_len, held, where, likely, name="seq_len")
            for pieces, piece in zip(past[layer], step, strict=True):
                pieces.append(piece)
            compare_update(cache.update(layer, *step), past[layer], where, S, dtype)
        cache.advance(count)
        held += count
        expect_equal(cache.seq_len, held, f"{given}, after advance({count})", name="seq_len")
    check_nbytes(cache.nbytes, shape, dtype, f"{given}, after {held} tokens")


def check_nbytes(came, shape, dtype, given: str):
    numbers = math.prod(shape)
    likely = [
        (numbers * dtype.itemsize, "Keys and values both count."),
        (2 * numbers, "That is a count of numbers, not of bytes."),
        (2 * numbers * 4, "The numbers are not stored in the dtype asked for."),
        (0, "Slots are reserved when the cache is made, not when tokens come."),
    ]
    expect_equal(came, 2 * numbers * dtype.itemsize, given, likely, name="nbytes")


def compare_update(came, past, given: str, max_seq_len: int, dtype=torch.float32):
    """What update returned against the pieces (keys, values) that went in."""
    pair = isinstance(came, (tuple, list)) and len(came) == 2
    expect(pair, f"For {given}, update should return two tensors: all keys, all values.")
    for name, tensor, pieces in zip(("keys", "values"), came, past, strict=True):
        wanted = torch.cat(pieces, dim=2)
        length = tensor.shape[2] if isinstance(tensor, torch.Tensor) and tensor.dim() == 4 else None
        unused = (
            f"For {given}, all {max_seq_len} slots of the {name} came back, also those that hold nothing."
        )
        expect(length != max_seq_len or wanted.shape[2] == max_seq_len, unused)
        alone = f"For {given}, the new {name} came back alone: attention needs the old ones too."
        expect(length != pieces[-1].shape[2] or len(pieces) == 1, alone)
        likely = [(torch.cat(pieces[::-1], dim=2), "The new tokens belong behind the old ones.")]
        expect_close(tensor, wanted, given, likely, dtype=dtype, tolerance=0, name=f"the tensor of {name}")


def refuse_what_does_not_fit(answer, rng):
    shape = (2, 2, 1, 6, 4)
    cache = answer(*shape, torch.float32)
    step = new_tokens(rng, shape, 6)
    for layer in range(2):
        cache.update(layer, *step[layer])  # exactly full is allowed
    cache.advance(3)
    second, too_many, last = (new_tokens(rng, shape, count)[0] for count in (2, 4, 1))
    cache.update(0, *second)
    because = "Refuse before anything is written, with the numbers in the message."
    given = "a cache of 6 slots that holds 3 tokens, given 4 more"
    expect_raises("ValueError", lambda: cache.update(0, *too_many), given, because)
    after = "a cache of 6 slots: 3 tokens held, 2 more written to layer 0, then 4 refused"
    expect_equal(cache.seq_len, 3, after, name="seq_len")
    check_nbytes(cache.nbytes, shape, torch.float32, after)
    cache.advance(2)
    compare_after_refusal(cache.update(0, *last), step[0], second, too_many, last, after)


def compare_after_refusal(came, first, second, refused, last, after: str):
    """The refused tokens must not have replaced those that were written before advance counted them."""
    given = f"{after}, then advance(2) and the last free slot"
    past = [(first[i][:, :, :3], second[i], last[i]) for i in (0, 1)]
    pair = isinstance(came, (tuple, list)) and len(came) == 2
    for i in range(2) if pair else ():
        spoiled = torch.cat((past[i][0], refused[i][:, :, :2], last[i]), dim=2)
        why = "The refused tokens were written all the same, over those of the update before."
        wanted = torch.cat(past[i], dim=2)
        expect_close(came[i], wanted, given, [(spoiled, why)], tolerance=0, name=("keys", "values")[i])
    compare_update(came, past, given, 6)


def select_rows(answer, rng):
    """Rows leave, change places and are doubled; afterwards each must grow on its own."""
    shape, rows = (2, 3, 2, 8, 4), [2, 0, 2, 0]
    cache = answer(*shape, torch.float32)
    before = new_tokens(rng, shape, 3)
    for layer in range(2):
        cache.update(layer, *before[layer])
    cache.advance(3)
    cache.select(rows)
    grown = (2, len(rows), 2, 8, 4)
    new = new_tokens(rng, grown, 1)
    for layer in range(2):
        given = f"3 rows, then select({rows}), then one new token a row, layer {layer}"
        compare_selected(cache.update(layer, *new[layer]), before[layer], new[layer], rows, given)
    check_nbytes(cache.nbytes, grown, torch.float32, f"select({rows})")


def compare_selected(came, before, new, rows, given: str):
    """Names the ways in which rows get mixed up: overwritten before they are read, shared, left in place."""
    for name, tensor, old, fresh in zip(("keys", "values"), came, before, new, strict=True):
        overwritten, shared = old.clone(), fresh.clone()
        for target, source in enumerate(rows[:3]):
            overwritten[target] = overwritten[source]
        shared[0], shared[1] = fresh[2], fresh[3]
        likely = [
            (torch.cat((overwritten[[0, 1, 2, 0]], fresh), 2), "A row was overwritten before it was read."),
            (torch.cat((old[rows], shared), 2), "Two rows share memory: writing to one changes the other."),
            (torch.cat((old[[0, 1, 2, 0]], fresh), 2), "The rows kept their old order."),
        ]
        expect_close(
            tensor, torch.cat((old[rows], fresh), 2), given, likely, tolerance=0, name=f"the tensor of {name}"
        )


# --- 02.ragged ------------------------------------------------------------------------------------------


@task("02.ragged", "a decode step for rows of different lengths")
def ragged(answer, rng):
    shapes = [(3, 4, 2, 9, 8), (1, 2, 2, 1, 4), (4, 6, 1, 17, 6), (5, 8, 4, 33, 16)]
    for (B, H, G, S, D), rubbish in itertools.product(shapes, (1e4, math.nan)):
        lengths = rng.randint(0, S, B)
        lengths[0] = S - 1  # its last free slot
        lengths[1:2] = 0  # a row whose first token this is
        q, k_new, v_new = rng.randn(B, H, D), rng.randn(B, G, D), rng.randn(B, G, D)
        free = (torch.arange(S) >= lengths[:, None])[:, None, :, None]  # [B, 1, S, 1]
        k, v = (torch.where(free, rubbish, rng.randn(B, G, S, D)) for _ in range(2))
        came = answer(q, k_new, v_new, k.clone(), v.clone(), lengths)
        given = f"B={B}, H={H}, G={G}, S={S}, D={D}, lengths {lengths.tolist()}, {rubbish} in the free slots"
        three = isinstance(came, (tuple, list)) and len(came) == 3
        expect(three, f"For {given}, three tensors should come back: out, k_cache, v_cache.")
        compare_cache("k_cache", came[1], k, k_new, lengths, given)
        compare_cache("v_cache", came[2], v, v_new, lengths, given)
        compare_out(came[0], q, written(k, k_new, lengths), written(v, v_new, lengths), lengths, given)


def compare_cache(name: str, came, before, new, lengths, given: str):
    """Only slots in use are compared: what lies behind them is nobody's business."""
    used = (torch.arange(before.shape[2]) <= lengths[:, None])[:, None, :, None]

    def in_use(cache):
        same = isinstance(cache, torch.Tensor) and cache.shape == before.shape
        return torch.where(used, cache, 0.0) if same else cache

    likely = [
        (
            lambda: in_use(written(before, new, lengths.max().expand(len(lengths)))),
            "Each row has its own end.",
        ),
        (
            lambda: in_use(written(before, new, (lengths - 1).clamp(min=0))),
            "The new token overwrote the last one.",
        ),
        (lambda: in_use(before), "The new token was not written."),
    ]
    expect_close(
        in_use(came), in_use(written(before, new, lengths)), given, likely, name=f"what {name} holds"
    )


def compare_out(came, q, k, v, lengths, given: str):
    longest = lengths.max().expand(len(lengths))
    likely = [
        (lambda: ragged_attention(q, k, v, lengths), "The new token must see itself too."),
        (lambda: ragged_attention(q, k, v, lengths + 1, scaled=False), "The scores lack 1/sqrt(D)."),
        (
            lambda: ragged_attention(q, k, v, lengths + 1, tiled=True),
            "Query head h belongs to head h // (H/G).",
        ),
        (lambda: ragged_attention(q, k, v, lengths + 2), "A slot behind the new token is seen."),
        (lambda: ragged_attention(q, k, v, longest + 1), "Every row was read to the longest row's end."),
    ]
    if v.isnan().any() and isinstance(came, torch.Tensor) and came.is_floating_point():
        weighed = (
            f"For {given}, out holds NaN. 0 times NaN is NaN: a weight of zero keeps no value out of a sum."
        )
        expect(not came.isnan().any(), weighed)
    expect_close(came, ragged_attention(q, k, v, lengths + 1), given, likely, name="out")


# --- 02.debug -------------------------------------------------------------------------------------------

FAULTS = {
    "position": "The layers above the first rotate by a count that has moved on before the step was over.",
    "future": "A piece fed behind others sees its own future.",
    "stale": "Tokens of the request before are still seen after reset().",
}


@task("02.debug", "a cache that passes the first test")
def debug(answer, rng):
    weights = [rng.randn(3, 16, 16) / 4 for _ in range(3)]
    for pieces in [(9,), (8, 1), (5, 1, 1, 1, 1), (4, 5), (1, 3, 3, 2)]:
        stack, requests = answer(*weights), [rng.randn(9, 16), rng.randn(9, 16)]
        for number, x in enumerate(requests):
            cut = " + ".join(map(str, pieces))
            given = f"{('the first request', 'the next request, after reset()')[number]}, fed as {cut} tokens"
            came = [stack.feed(piece) for piece in x.split(pieces)]
            shapes = [tuple(c.shape) if isinstance(c, torch.Tensor) else type(c).__name__ for c in came]
            shaped = shapes == [(n, 16) for n in pieces]
            expect(shaped, f"For {given}, feed should return [T, 16] for T tokens, but {shapes} came.")
            wanted = replay(weights, requests[: number + 1], [9])
            expect_close(
                torch.cat(came),
                wanted,
                given,
                guesses(weights, requests[: number + 1], pieces),
                name="the output",
            )
            stack.reset()


def replay(weights, requests, pieces, faults=()):
    """What a stack with these faults gives for the last of several requests."""
    stack = Stack(*weights, faults)
    for x in requests:
        stack.reset()
        out = torch.cat([stack.feed(piece) for piece in x.split(pieces)])
    return out


def guesses(weights, requests, pieces):
    """Every combination of the planted faults, the single ones first."""
    for count in range(1, len(FAULTS) + 1):
        for faults in itertools.combinations(FAULTS, count):
            yield (
                lambda f=faults: replay(weights, requests, pieces, f),
                " ".join(FAULTS[name] for name in faults),
            )
