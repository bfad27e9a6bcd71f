"""Checks of exercise 08 whose answers are kernels: 08.partial, one split of a context, and 08.paged.

A kernel is judged by what its results mean: any maximum that a split subtracts is right as long as its sum
fits to it.
"""

import itertools
from functools import partial

import torch

from minitransformer.course.checking import expect, expect_close, task
from minitransformer.course.checks.decode_reference import FAULTS, decode_attention, gathered, one_head, seen
from minitransformer.course.checks.triton_checks import Input, Output, TritonAnswer

BLOCK = 16  # keys that a kernel takes at a time in the tests
ON_A_GPU = 5e-3  # relative error of products in TF32 or 16 bits
NAN = float("nan")


def rows_for(group: int) -> int:
    """Rows of a tile for the query heads of a group: a power of two, and at least 16 for tl.dot."""
    return max(16, 1 << (group - 1).bit_length())


# --- 08.partial -----------------------------------------------------------------------------------------

# B, H, G, D, room in the cache, lengths, splits, gap after each token's row, dtype
SPLITS = [
    (1, 2, 1, 16, 32, [32], 2, 0, torch.float32),
    (2, 4, 2, 24, 60, [60, 41], 3, 0, torch.float32),  # lengths and D that are no multiple of anything
    (3, 6, 2, 16, 40, [5, 0, 33], 2, 8, torch.float32),  # empty splits; rows with gaps between them
    (1, 20, 1, 32, 33, [33], 1, 0, torch.bfloat16),  # a group larger than 16
    (1, 3, 3, 32, 48, [41], 2, 4, torch.float16),
]


@task("08.partial", "the kernel of a split")
def partial_kernel(answer, rng):
    kernel = TritonAnswer(answer)
    for case in SPLITS:
        B, H, G, D, S, lens, splits, gap, dtype = case
        q, k, v = rng.randn(B, H, D), rng.randn(B, G, S, D), rng.randn(B, G, S, D)
        q, k, v = 2 * q.to(dtype), k.to(dtype), v.to(dtype)
        for b, length in enumerate(lens):
            k[b, :, length:], v[b, :, length:] = NAN, NAN
        args, split = launch_of(q, k, v, lens, splits, gap)
        kind = str(dtype).removeprefix("torch.")
        given = (
            f"{H} query and {G} key/value heads of {D}, lengths {lens}, {splits} splits of {split}, {kind}"
        )
        for gpu in (False, True) if kernel.gpu else (False,):
            came = kernel.launch((B, G, splits), args, given, gpu=gpu)
            compare_splits(came, (q, k, v, lens, split, splits), given, ON_A_GPU if gpu else 2e-5)
    kernel.compiles(real_launch(), dtypes=dict.fromkeys("qkv", torch.bfloat16))
    return kernel.note


def expect_no_nan(out: torch.Tensor, given: str):
    """Fails where slots of the cache that hold nothing reached the result."""
    expect(
        not out.isnan().any(),
        f"For {given}, NaN came. Slots behind a sequence's last token may hold anything, and here they hold "
        "NaN: a score of -inf gives their values the weight 0, but 0 * NaN is NaN. Mask the loads of k and v "
        "as well as the scores. (Or was there an inf - inf, where everything is masked?)",
    )


def launch_of(q, k, v, lens: list[int], splits: int, gap: int) -> tuple[dict, int]:
    """The kernel's arguments by name, in the task's order, and the tokens of a split."""
    (B, H, D), (G, S) = q.shape, k.shape[1:3]
    split = -(-S // (splits * BLOCK)) * BLOCK
    strides = (G * S * (D + gap), S * (D + gap), D + gap, 1)
    args = {
        "q": q,
        "k": Input(k, strides),
        "v": Input(v, strides),
        "lens": torch.tensor(lens, dtype=torch.int32),
        "m": Output((B, H, splits)),
        "l": Output((B, H, splits)),
        "acc": Output((B, H, splits, D)),
        "stride_b": strides[0],
        "stride_g": strides[1],
        "stride_s": strides[2],
        "split": split,
        "scale": D**-0.5,
        "GROUP": H // G,
        "ROWS": rows_for(H // G),
        "D": D,
        "BLOCK_D": 1 << (D - 1).bit_length(),
        "BLOCK": BLOCK,
    }
    return args, split


def real_launch() -> dict:
    """Arguments as for an 8B model: what the kernel is compiled for."""
    none = torch.zeros(1, 32, 128)
    args, _ = launch_of(none, none[:, :8, None], none[:, :8, None], [1], 1, 0)
    return args | {"stride_g": 2**20, "stride_b": 2**23, "split": 4096, "BLOCK": 64}


def compare_splits(came: dict, problem: tuple, given: str, tolerance: float):
    """Compares log(sum of e^score) and the output of each split, which do not depend on its m."""
    m, l, acc = (came[name].double() for name in ("m", "l", "acc"))
    expect_no_nan(acc, given)
    lse = m + l.log()
    out = acc / torch.where(l == 0, 1.0, l)[..., None]
    right_lse, right_out = split_results(*problem)
    faulty = {fault: partial(split_results, *problem, fault=fault) for fault in FAULTS}
    likely = [(lambda f=f: faulty[f]()[0], why) for f, why in FAULTS.items()]
    base_two = "The kernel's m and l are those of powers of two; the task asks for e."
    likely += [(lambda: m * 0.6931471805599453 + l.log(), base_two)] if m.isfinite().all() else []
    expect_close(lse, right_lse, given, likely, tolerance=tolerance, name="m + log(l)")
    likely = [(lambda f=f: faulty[f]()[1], why) for f, why in FAULTS.items()]
    likely += [(right_out * torch.where(l == 0, 1.0, l)[..., None], "acc must not be divided by l yet.")]
    likely += [
        (
            right_out / torch.where(l == 0, 1.0, l)[..., None],
            "acc is not to be divided by l: merging does that.",
        )
    ]
    expect_close(out, right_out, given, likely, tolerance=tolerance, name="acc / l")


def split_results(q, k, v, lens, split: int, splits: int, fault: str = ""):
    """log-sum-exp [B, H, splits] and output [B, H, splits, D] of every split, in float64."""
    (B, H, D), (G, S) = q.shape, k.shape[1:3]
    lse = torch.full((B, H, splits), -torch.inf, dtype=torch.float64)
    out = torch.zeros(B, H, splits, D, dtype=torch.float64)
    scale = 1.0 if fault == "no scale" else D**-0.5
    for b, h, i in itertools.product(range(B), range(H), range(splits)):
        g = h % G if fault == "heads in turns" else h // (H // G)
        row = h // (H // G) * (H // G) if fault == "first head" else h
        length = int(lens[0 if fault == "lengths of sequence 0" else b])
        count = seen(min(max(length - i * split, 0), split), min(split, S - i * split), BLOCK, fault)
        keys, values = (x[b, g, i * split : i * split + count] for x in (k, v))
        if count > 0:
            lse[b, h, i] = (scale * (keys.double() @ q[b, row].double())).logsumexp(0)
            out[b, h, i] = one_head(q[b, row], keys, values, count, BLOCK, fault)
    return lse, out


# --- 08.paged -------------------------------------------------------------------------------------------

# B, H, G, D, block, lengths, blocks in memory, columns of the table, dtype
PAGES = [
    (1, 2, 2, 16, 16, [48], 4, 3, torch.float32),
    (2, 4, 2, 32, 16, [50, 16], 9, 4, torch.float32),
    (3, 6, 2, 16, 16, [1, 33, 20], 12, 5, torch.float32),
    (2, 4, 4, 64, 32, [40, 3], 5, 2, torch.bfloat16),
]


@task("08.paged", "attention through a block table")
def paged_kernel(answer, rng):
    kernel = TritonAnswer(answer)
    for case in PAGES:
        B, H, G, D, block, lens, *_, dtype = case
        q = 2 * rng.randn(B, H, D, dtype=dtype)
        k, v, table = scattered_cache(rng, case)
        args = paged_launch(q, k, v, table, lens)
        kind = str(dtype).removeprefix("torch.")
        given = f"{H} query and {G} key/value heads of {D}, lengths {lens} in blocks of {block}, {kind}"
        seen_k, seen_v = gathered(k, table), gathered(v, table)
        right = decode_attention(q, seen_k, seen_v, lens)
        likely = paged_slips(q, k, v, table, lens)
        for gpu in (False, True) if kernel.gpu else (False,):
            out = kernel.launch((B, G), args, given, gpu=gpu)["out"]
            expect_no_nan(out, given)
            exact = dtype == torch.float32 and not gpu
            expect_close(out, right, given, likely, tolerance=2e-5 if exact else 1e-2, name="out")
    kernel.compiles(
        paged_launch(*real_pages()), dtypes=dict.fromkeys("qkv", torch.bfloat16) | {"out": torch.bfloat16}
    )
    return kernel.note


def scattered_cache(rng, case):
    """k, v [N, block, G, D] and a table [B, M]: blocks in random order, NaN in all unused slots."""
    B, _, G, D, block, lens, num_blocks, columns, dtype = case
    free = rng.permutation(num_blocks).tolist()
    table = torch.full(
        (B, columns), free[-1], dtype=torch.int32
    )  # what is not used leads to a block of others
    k, v = (torch.full((num_blocks, block, G, D), NAN, dtype=dtype) for _ in range(2))
    for b, length in enumerate(lens):
        for j in range(-(-length // block)):
            at, used = free.pop(0), min(block, length - j * block)
            table[b, j] = at
            k[at, :used], v[at, :used] = (
                rng.randn(used, G, D, dtype=dtype),
                rng.randn(used, G, D, dtype=dtype),
            )
    return k, v, table


def paged_launch(q, k, v, table, lens: list[int]) -> dict:
    """The kernel's arguments by name, in the task's order."""
    (_, H, D), (_, block, G, _) = q.shape, k.shape
    return {
        "q": q,
        "k": k,
        "v": v,
        "table": table,
        "lens": torch.tensor(lens, dtype=torch.int32),
        "out": Output(tuple(q.shape), q.dtype),
        "columns": table.shape[1],
        "scale": D**-0.5,
        "GROUP": H // G,
        "ROWS": rows_for(H // G),
        "D": D,
        "BLOCK": block,
    }


def real_pages():
    """As for an 8B model."""
    cache = torch.zeros(1, 16, 8, 128)
    return torch.zeros(1, 32, 128), cache, cache, torch.zeros(1, 512, dtype=torch.int32), [16]


def paged_slips(q, k, v, table, lens):
    """What comes of the faults that were planted, alone, and of some that a mend may bring."""
    block, counts = k.shape[1], [-(-n // k.shape[1]) for n in lens]
    packed = torch.zeros_like(table)
    flat = table.flatten()
    for b, count in enumerate(counts):
        packed[b, :count] = flat[b * count : (b + 1) * count]
    slips = [
        (
            lambda: attend(packed, ""),
            "A row of the block table has `columns` entries, whatever the sequence uses of them.",
        ),
        (lambda: attend(table, "heads in turns"), FAULTS["heads in turns"]),
        (lambda: attend(table, "tail dropped"), FAULTS["tail dropped"]),
        (lambda: attend(table, "one short"), FAULTS["one short"]),
        (lambda: attend(table, "lengths of sequence 0"), FAULTS["lengths of sequence 0"]),
        (lambda: no_rescue(q, k, v, table, lens), "When the maximum grows, acc has to shrink as l does."),
    ]

    def attend(table, fault):
        return decode_attention(q, gathered(k, table), gathered(v, table), lens, fault=fault, block=block)

    return slips


def no_rescue(q, k, v, table, lens) -> torch.Tensor:
    """acc is summed under whatever maximum there was; l is right."""
    k, v, block = gathered(k, table).double(), gathered(v, table).double(), k.shape[1]
    (B, H, D), G = q.shape, k.shape[1]
    out = torch.zeros(B, H, D, dtype=torch.float64)
    for b, h in itertools.product(range(B), range(H)):
        g, length = h // (H // G), int(lens[b])
        scores = k[b, g, :length] @ q[b, h].double() * D**-0.5
        seen_max = torch.stack([scores[: (s // block + 1) * block].max() for s in range(length)])
        out[b, h] = (scores - seen_max).exp() @ v[b, g, :length] / (scores - scores.max()).exp().sum()
    return out
