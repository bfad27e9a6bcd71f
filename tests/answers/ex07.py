"""Answers to exercise 07 that are wrong in ways that people really write, and other right ones.

Most are the solution with a small change (edits.py).
"""

from answers.edits import Solution
from answers.ex07_whole import (
    BLOCK_BY_BLOCK_MERGE,
    BLOCKS_BY_HAND,
    KERNEL_IN_TWO_LOOPS,
    KERNEL_POWERS_OF_TWO,
    MERGE_BY_LARGEST,
    NAPKIN_BY_COST_MODEL,
    STEP_IN_LOGARITHMS,
    STEP_ROW_BY_ROW,
)

SOLUTION = Solution("07_flash_attention")
napkin = SOLUTION.edits("napkin-answer")
step = SOLUTION.edits("step-answer")
merge = SOLUTION.edits("merge-answer")
kernel = SOLUTION.edits("kernel-answer")
debug = SOLUTION.edits("debug-answer")
blocks = SOLUTION.edits("blocks-answer")


KEYS_MASK = "mask=(s < S)[:, None], other=0.0"
SEEN = "(s < S)[None, :] & (s[None, :] <= (S - T + t)[:, None])"
SHARES = "shares = (lses - lse.masked_fill(lse == -torch.inf, 0.0)).exp()"
END = "tl.minimum(S, S - T + first + BLOCK_T)"
LOAD_K, LOAD_V = f"tl.load(k_ptr + at, {KEYS_MASK})", f"tl.load(v_ptr + at, {KEYS_MASK})"
GOOD_SHARED = 'if shared[c] <= f["shared_kb"] * 1024 / f["programs"]\n'
GOOD_REGISTERS = 'and registers[c] + 60 <= min(255, 65536 / (32 * c[2] * f["programs"]))'
GOOD_L2 = 'and asked[c] / (f["l2_tb_s"] * 1e12) <= products'
GOOD_PROGRAMS = 'and math.ceil(T / c[0]) * H >= f["cores"] * f["programs"]'
LARGEST = "choice = max(good, key=lambda c: (c[1], c[0]))"

ANSWERS = {
    "07.napkin": {
        "wrong": {
            "the matrix moves twice": napkin(("+ 4 * matrix", "+ 2 * matrix")),
            "the matrix alone": napkin(("flash_bytes + 4 * matrix", "4 * matrix"), ("seed = 2", "seed = 6")),
            "one byte a number": napkin(("matrix = 2 * H", "matrix = H")),
            "one head": napkin(("matrix = 2 * H * T * T", "matrix = 2 * T * T")),
            "keys for every query head": napkin(("* T * (H + G)", "* T * (H + H)")),
            "keys without values": napkin(("2 * 2 * D * T * (H + G)", "2 * D * T * (2 * H + G)")),
            "no root": napkin(("l2_tokens = math.sqrt(", "l2_tokens = (")),
            "one matrix in memory": napkin(("/ (2 * 2 * H)", "/ (2 * H)")),
            "the whole square for the causal kernel": napkin(("T * (T + 1) / 2 / peak", "T * T / peak")),
            "compute-bound, always": napkin(
                ("max(4 * H * D * T * T / peak, naive_bytes / bandwidth)", "4 * H * D * T * T / peak")
            ),
            "in seconds": napkin(("naive_ms = 1e3 * ", "naive_ms = ")),
        },
        "right": {
            "from the cost model": NAPKIN_BY_COST_MODEL,
            "whole tokens": napkin(('"l2_tokens": l2_tokens', '"l2_tokens": int(l2_tokens)')),
        },
    },
    "07.step": {
        "wrong": {
            "nothing shrinks": step(("l * shrink", "l"), ("acc * shrink[:, None]", "acc")),
            "acc does not shrink": step(("acc * shrink[:, None]", "acc")),
            "l does not shrink": step(("l * shrink", "l")),
            "the block's own maximum": step(("torch.maximum(m, scores.amax(1))", "scores.amax(1)")),
            "no maximum at all": step(
                ("(scores - base[:, None]).exp()", "scores.exp()"), ("(m - base).exp()", "1.0 + 0 * l")
            ),
            "one maximum for all queries": step(
                ("torch.maximum(m, scores.amax(1))", "torch.maximum(m, scores.max()).max().repeat(len(m))")
            ),
            "the old m comes back": step(("return new_m,", "return m,")),
            "shrinks the wrong way": step(("(m - base).exp()", "(base - m).exp()")),
            "NaN where nothing was seen": step(
                ("base = new_m.masked_fill(new_m == -torch.inf, 0.0)", "base = new_m")
            ),
            "divides at once": step(
                ("return new_m, l", "total = l * shrink + weights.sum(1)\n    return new_m, l"),
                ("weights @ v\n", "weights @ v / total[:, None]\n"),
            ),
        },
        "right": {
            "row by row": STEP_ROW_BY_ROW,
            "m is a running log-sum-exp": STEP_IN_LOGARITHMS,
            "a finite lowest": step(
                (
                    "new_m = torch.maximum(m, scores.amax(1))",
                    "m = m.clamp(min=-1e38)\n    new_m = torch.maximum(m, scores.amax(1))",
                )
            ),
        },
    },
    "07.merge": {
        "wrong": {
            "a plain average": merge((SHARES, "shares = torch.ones_like(lses) / len(lses)")),
            "weighted by lse": merge((SHARES, "shares = lses / lses.sum(0)")),
            "overflows": merge(
                ("torch.logsumexp(lses, dim=0)", "lses.exp().sum(0).log()"),
            ),
            "the sum of results": merge((SHARES, "shares = torch.ones_like(lses)")),
            "the largest lse": merge(("torch.logsumexp(lses, dim=0)", "lses.amax(0)")),
            "lse is added up": merge(("(0), lse", "(0), lses.sum(0)")),
            "NaN where nobody had a key": merge((SHARES, "shares = (lses - lse).exp()")),
            "the first two parts": merge(
                ("torch.stack(outs), torch.stack(lses)", "torch.stack(outs[:2]), torch.stack(lses[:2])")
            ),
        },
        "right": {"largest first": MERGE_BY_LARGEST, "two at a time": BLOCK_BY_BLOCK_MERGE},
    },
    "07.kernel": {
        "wrong": {
            "no mask": kernel((SEEN, "(s < S)[None, :] & (s >= 0)[None, :] & (t >= 0)[:, None]"), (END, "S")),
            "top left": kernel((SEEN, "(s < S)[None, :] & (s[None, :] <= t[:, None])")),
            "top left, and stops there": kernel(
                (SEEN, "(s < S)[None, :] & (s[None, :] <= t[:, None])"),
                (END, "tl.minimum(S, first + BLOCK_T)"),
            ),
            "stops at the diagonal of T = S": kernel((END, "tl.minimum(S, first + BLOCK_T)")),
            "a query does not see itself": kernel(("<= (S - T + t)", "< (S - T + t)")),
            "acc is not rescaled": kernel(("acc * shrink[:, None] +", "acc +")),
            "l is not rescaled": kernel(("l * shrink +", "l +")),
            "no scale": kernel((" * scale\n", "\n")),
            "the tail block is dropped": kernel(
                ("range(0, end, BLOCK_S)", "range(0, end // BLOCK_S * BLOCK_S, BLOCK_S)")
            ),
            "keys read beyond the end": kernel((LOAD_K, "tl.load(k_ptr + at)")),
            "values read beyond the end": kernel((LOAD_V, "tl.load(v_ptr + at)")),
            "acc rounded to bfloat16": kernel(
                ("m = new_m\n", "acc = acc.to(tl.bfloat16).to(tl.float32)\n        m = new_m\n")
            ),
            "acc in the tensors' own type": kernel(
                (
                    "acc = acc * shrink[:, None] + tl.dot(weights.to(v.dtype), v)",
                    "acc = (acc * shrink[:, None] + tl.dot(weights.to(v.dtype), v)).to(v.dtype)",
                )
            ),
            "the largest of the block": kernel(("tl.maximum(m, tl.max(scores, 1))", "tl.max(scores, 1)")),
            "weights without dot": kernel(
                ("tl.dot(weights.to(v.dtype), v)", "tl.sum(weights[:, :, None] * v[None, :, :], 1)"),
                ("tl.dot(q, tl.trans(k)) * scale", "tl.sum(q[:, None, :] * k[None, :, :], 2) * scale"),
            ),
        },
        "right": {
            "two loops": KERNEL_IN_TWO_LOOPS,
            "powers of two": KERNEL_POWERS_OF_TWO,
            "all keys, masked": kernel((END, "S")),
        },
    },
    "07.debug": {
        "wrong": {
            "as given": SOLUTION.cells["debug-given"].replace("broken_kernel", "mended_kernel"),
            "still top left": debug((SEEN, "(s < S)[None, :] & (s[None, :] <= t[:, None])")),
            "still too short": debug((END, "tl.minimum(S, first + BLOCK_T)")),
            "still the wrong head": debug(("head // GROUP *", "head % (tl.num_programs(1) // GROUP) *")),
            "m still begins at 0": debug(
                ("tl.full([BLOCK_T], -1.0e38, tl.float32)", "tl.zeros([BLOCK_T], tl.float32)")
            ),
            "loads without a mask": debug((LOAD_K, "tl.load(k_ptr + at)"), (LOAD_V, "tl.load(v_ptr + at)")),
            "masked by queries": debug((KEYS_MASK, "mask=(s < T)[:, None], other=0.0")),
        },
        "right": {
            "all keys": debug((END, "S")),
            "two loops": KERNEL_IN_TWO_LOOPS.replace("flash_kernel", "mended_kernel"),
        },
    },
    "07.blocks": {
        "wrong": {
            "the largest of all": blocks((LARGEST, "choice = (256, 256, 4, 4)")),
            "tiny blocks": blocks((LARGEST, "choice = (16, 16, 4, 2)")),
            "one stage's worth of shared memory": blocks(("+ 2 * c[3] * c[1])", "+ 2 * c[1])")),
            "keys without values": blocks(("+ 2 * c[3] * c[1])", "+ c[3] * c[1])")),
            "the accumulator alone": blocks(("c[0] * (D + c[1]) / (32 * c[2])", "c[0] * D / (32 * c[2])")),
            "registers of a warp": blocks(
                ("/ (32 * c[2]) for c", "/ c[2] for c"), ("registers[c] + 60", "registers[c] / 32 + 60")
            ),
            "shared memory forgotten": blocks(
                (GOOD_SHARED, "if True\n"), (LARGEST, "choice = max(good, key=lambda c: shared[c])")
            ),
            "registers forgotten": blocks(
                (GOOD_REGISTERS, ""), (LARGEST, "choice = max(good, key=lambda c: registers[c])")
            ),
            "L2 forgotten": blocks((GOOD_L2, ""), (LARGEST, "choice = min(good, key=lambda c: c[0])")),
            "keys are asked for once": blocks(
                ("asked[choice] / 1e9", "4 * H * T * D / 1e9"),
            ),
            "the whole square": blocks(
                ("asked[choice] / 1e9", "4 * H * D * math.ceil(T / choice[0]) * T / 1e9"),
            ),
        },
        "right": {
            "by hand": BLOCKS_BY_HAND,
            "the smallest that will do": blocks((LARGEST, "choice = min(good)")),
            "another seed": blocks(("seed = 3", "seed = 8")),
        },
    },
}
