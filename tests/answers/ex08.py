"""Answers to exercise 08 that are wrong in ways that people really write, and other right ones.

Most are the solution with a small change (edits.py).
"""

from answers.edits import Solution
from answers.ex08_whole import (
    FULL_WAVES,
    MERGE_BY_SOFTMAX,
    MERGE_ONE_BY_ONE,
    PAGED_IN_TWO_PASSES,
    PAGED_WITHOUT_TENSOR_CORES,
    PARTIAL_BY_SUMS,
    PARTIAL_FROM_LOWEST,
    PARTIAL_MASKED_LOOP,
)

SOLUTION = Solution("08_decode_kernels")
napkin = SOLUTION.edits("napkin-answer")
merge = SOLUTION.edits("merge-answer")
partial = SOLUTION.edits("partial-answer")
paged = SOLUTION.edits("paged-answer")
splits = SOLUTION.edits("splits-answer")
paging = SOLUTION.edits("paging-answer")


SEARCH = "return min(range(1, min(blocks, 128) + 1), key=seconds)"
LAST_LINE = "return (factor[..., None] * acc).sum(-2) / torch.where(total > 0, total, 1.0)"
SCORES_MASK = 'scores = tl.where((token < end)[None, :], scores, -float("inf"))'
PAGED_SCORES = 'tl.where(inside[None, :], tl.dot(q, tl.trans(k)) * scale, -float("inf"))'

ANSWERS = {
    "08.napkin": {
        "wrong": {
            "keys alone": napkin(('a_head = 2 * f["context"]', 'a_head = f["context"]')),
            "one byte a number": napkin(('f["head_dim"] * 2', 'f["head_dim"]')),
            "the cache of every query head": napkin(
                ('f["batch"] * f["kv_heads"] * a_head', "programs_a * a_head"),
                ("floor_us =", 'programs_a = f["batch"] * f["heads"]\nfloor_us ='),
            ),
            "kernel A with the whole bandwidth": napkin(
                ("1e6 * a_head / an_sm", "1e6 * programs_a * a_head / bandwidth")
            ),
            "a part of a wave": napkin(('math.ceil(programs_b / f["sms"])', 'programs_b / f["sms"]')),
            "a program for each query head and split": napkin(
                ('f["batch"] * f["kv_heads"] * f["splits"]', 'f["batch"] * f["heads"] * f["splits"]')
            ),
            "in seconds": napkin(("time_b_us = waves_b * 1e6", "time_b_us = waves_b")),
            "every program reads the whole context": napkin(
                ('a_head / f["splits"] / an_sm', "a_head / an_sm")
            ),
        },
        "right": {
            "rounded to three digits": napkin(
                ('"time_b_us": time_b_us', '"time_b_us": float(f"{time_b_us:.3g}")')
            ),
            "from the floor": napkin(
                ("1e6 * a_head / an_sm", 'floor_us * f["sms"] / (f["batch"] * f["kv_heads"])'),
            ),
        },
    },
    "08.merge": {
        "wrong": {
            "plain average": merge((LAST_LINE, "return (acc / l.clamp(min=1e-30)[..., None]).mean(-2)")),
            "average of those with tokens": merge(
                (
                    LAST_LINE,
                    "return (acc / l.clamp(min=1e-30)[..., None]).sum(-2) / (l > 0).sum(-1, keepdim=True)",
                )
            ),
            "no common maximum": merge((LAST_LINE, "return acc.sum(-2) / l.sum(-1, keepdim=True)")),
            "l not rescaled": merge(("(factor * l).sum", "l.sum")),
            "not divided": merge((" / torch.where(total > 0, total, 1.0)", "")),
            "NaN of an empty split": merge(("torch.where(l > 0, (m - top).exp(), 0.0)", "(m - top).exp()")),
            "NaN of an empty sequence": merge(("/ torch.where(total > 0, total, 1.0)", "/ total")),
            "e^m without a maximum": merge(("(m - top).exp()", "m.exp()")),
            "by m alone": merge(
                ("(factor * l).sum", "factor.sum"), ("* acc)", "* acc / l.clamp(min=1e-30)[..., None])")
            ),
            "one maximum for everything": merge(("m.amax(-1, keepdim=True)", "m.amax()")),
        },
        "right": {
            "by softmax over log-sum-exps": MERGE_BY_SOFTMAX,
            "one split after another": MERGE_ONE_BY_ONE,
        },
    },
    "08.partial": {
        "wrong": {
            "tail block dropped": partial(
                ("range(start, end, BLOCK)", "range(start, end - BLOCK + 1, BLOCK)")
            ),
            "scores not masked": partial(("        " + SCORES_MASK + "\n", "")),
            "masked scores are 0": partial((SCORES_MASK, SCORES_MASK.replace('-float("inf")', "0.0"))),
            "v read behind the end": partial(
                (
                    "v = dot_operand(tl.load(v_ptr + at, mask=inside, other=0.0))",
                    "v = dot_operand(tl.load(v_ptr + at, mask=(dims < D)[None, :], other=0.0))",
                )
            ),
            "k and v read behind the end": partial(
                (
                    "inside = (token < end)[:, None] & (dims < D)[None, :]",
                    "inside = (token >= 0)[:, None] & (dims < D)[None, :]",
                )
            ),
            "rows taken for contiguous": partial(("token[:, None] * stride_s", "token[:, None] * D")),
            "the next head's stride": partial(("g * stride_g", "g * stride_s")),
            "heads in turns": partial(
                ("row = b * H + g * GROUP + rows", "row = b * H + rows * tl.num_programs(1) + g")
            ),
            "padded rows stored": partial(("l, mask=rows < GROUP", "l, mask=rows < ROWS")),
            "acc does not shrink": partial(("acc * shrink[:, None]", "acc")),
            "length ignored": partial(("tl.minimum(start + split, tl.load(lens_ptr + b))", "start + split")),
            "length of sequence 0": partial(("tl.load(lens_ptr + b)", "tl.load(lens_ptr)")),
            "divided by l": partial(
                (
                    "dims[None, :], acc, mask=real",
                    "dims[None, :], acc / tl.where(l == 0, 1.0, l)[:, None], mask=real",
                )
            ),
            "not scaled": partial(("tl.dot(q, tl.trans(k)) * scale", "tl.dot(q, tl.trans(k))")),
            "reads past the end of D": partial(
                ("mask=real, other=0.0", "mask=(rows < GROUP)[:, None], other=0.0"),
                ("inside = (token < end)[:, None] & (dims < D)[None, :]", "inside = (token < end)[:, None]"),
            ),
            "bfloat16 added up by the interpreter": partial(
                ("dot_operand(tl.load(q_ptr", "(tl.load(q_ptr"),
                ("dot_operand(tl.load(k_ptr", "(tl.load(k_ptr"),
                ("dot_operand(tl.load(v_ptr", "(tl.load(v_ptr"),
            ),
        },
        "right": {
            "m starts at a low number": PARTIAL_FROM_LOWEST,
            "sums instead of tl.dot": PARTIAL_BY_SUMS,
            "a loop over the whole split, masked": PARTIAL_MASKED_LOOP,
        },
    },
    "08.paged": {
        "wrong": {
            "as given": SOLUTION.cells["paged-given"].replace("broken_paged_kernel", "paged_kernel"),
            "row of the table by blocks in use": paged(("b * columns + j", "b * tl.cdiv(length, BLOCK) + j")),
            "heads in turns": paged(("(b * G + g) * GROUP + rows", "b * G * GROUP + rows * G + g")),
            "the next block of the table": paged(
                ("b * columns + j)", "b * columns + j + 1, mask=j + 1 < columns, other=0)")
            ),
            "scores not masked": paged((PAGED_SCORES, "tl.dot(q, tl.trans(k)) * scale")),
            "garbage of v read": paged(
                ("tl.load(v_ptr + at, mask=inside[:, None], other=0.0)", "tl.load(v_ptr + at)")
            ),
            "tail dropped": paged(("range(0, tl.cdiv(length, BLOCK))", "range(0, length // BLOCK)")),
            "length ignored": paged(("tl.load(lens_ptr + b)", "columns * BLOCK")),
            "acc does not shrink": paged(("acc * shrink[:, None]", "acc")),
            "block number without its tokens": paged(
                ("(block * BLOCK + slots[:, None])", "(block + slots[:, None])")
            ),
            "heads before tokens": paged(
                (
                    "((block * BLOCK + slots[:, None]) * G + g) * D",
                    "((block * G + g) * BLOCK + slots[:, None]) * D",
                )
            ),
        },
        "right": {
            "two passes": PAGED_IN_TWO_PASSES,
            "without tensor cores": PAGED_WITHOUT_TENSOR_CORES,
        },
    },
    "08.splits": {
        "wrong": {
            "never split": splits((SEARCH, "return 1")),
            "as many as blocks": splits((SEARCH, "return blocks")),
            "just enough programs": splits((SEARCH, "return max(1, math.ceil(sms / programs))")),
            "one wave or less": splits((SEARCH, "return max(1, sms // programs)")),
            "a split for each SM": splits((SEARCH, "return min(sms, blocks)")),
            "every 256 tokens": splits((SEARCH, "return max(1, context // 256)")),
            "always 8": splits((SEARCH, "return 8")),
            "the most splits": splits(("reading + (2e-6 + partials / bandwidth if n > 1 else 0.0)", "-n")),
            "a share, not a number": splits((SEARCH, "return sms / programs")),
        },
        "right": {
            "full waves compared": FULL_WAVES,
            "the fewest that are nearly best": splits(
                (
                    SEARCH,
                    "times = {n: seconds(n) for n in range(1, min(blocks, 128) + 1)}\n"
                    "    return next(n for n in times if times[n] <= 1.05 * min(times.values()))",
                )
            ),
        },
    },
    "08.paging": {
        "wrong": {
            "the share in use": paging(("waste_a = 1 - used", "waste_a = used")),
            "blocks rounded down": paging(('math.ceil(n / f["block"])', 'n // f["block"]')),
            "half a block each": paging(
                ('(blocks * f["block"] - used) * a_token', 'count * f["block"] / 2 * a_token')
            ),
            "a KB of a thousand": paging(("1024 * f", "1000 * f")),
            "an entry a token": paging(("table_bytes = 4 * blocks", "table_bytes = 4 * used")),
            "part of a sequence": paging(
                (
                    'f["memory_gb"] * 1e9 // (f["longest"] * a_token)',
                    'f["memory_gb"] * 1e9 / (used / count * a_token)',
                )
            ),
            "server B reserves too": paging(('"sequences_b": sequences_b', '"sequences_b": sequences_a')),
            "percent": paging(('"waste_b": waste_b,', '"waste_b": 100 * waste_b,')),
        },
        "right": {
            "not rounded down": paging(
                ('(f["block"] * a_token) // (blocks / count)', '(f["block"] * a_token) / (blocks / count)')
            ),
            "token by token": paging(('math.ceil(n / f["block"])', 'len(range(0, n, f["block"]))')),
        },
    },
}
