"""Answers to exercise 01 that are wrong in ways that people really write, and other right ones.

Most are the solution with a small change (edits.py).
"""

from answers.edits import Solution
from answers.ex01_whole import (
    ALL_QUERIES_THEN_CUT,
    ATTENTION_BY_EINSUM,
    ATTENTION_BY_LOOPS,
    ATTENTION_BY_SDPA,
    ATTENTION_IN_NUMPY,
    LIBRARY_NORM,
    NORM_IN_DOUBLE,
    ROPE_AS_COMPLEX,
    ROPE_ROTATE_HALF,
)

SOLUTION = Solution("01_attention_in_context")
numbers = SOLUTION.edits("numbers-answer")
norm = SOLUTION.edits("norm-answer")
rope = SOLUTION.edits("rope-answer")
attention = SOLUTION.edits("attention-answer")
debug = SOLUTION.edits("debug-answer")
layer = SOLUTION.edits("layer-answer")


MASK = ("F.scaled_dot_product_attention(q, k, v, attn_mask=seen)",
        "F.scaled_dot_product_attention(q, k, v, is_causal=True)")  # fmt: skip
POSITIONS = ("turn(q, positions[-last:])", "turn(q, torch.arange(last))")
HEADS = ("k.repeat_interleave(copies, dim=1), v.repeat_interleave(copies, dim=1)",
         "k.repeat(1, copies, 1, 1), v.repeat(1, copies, 1, 1)")  # fmt: skip
MASKED = "scores = scores.masked_fill(torch.arange(S) > positions, -math.inf)"

ANSWERS = {
    "01.numbers": {
        "wrong": {
            "the whole square": numbers(('(f["tokens"] + 1) // 2', 'f["tokens"]')),
            "a token does not see itself": numbers(('(f["tokens"] + 1) // 2', '(f["tokens"] - 1) // 2')),
            "one FLOP a multiply-add": numbers(("pairs * 2 * 2", "pairs * 2")),
            "scores of the shared heads only": numbers(('f["heads"] * pairs', 'f["kv_heads"] * pairs')),
            "one layer": numbers(('f["layers"] * f["heads"] * pairs', 'f["heads"] * pairs')),
            "projections as if every head had its own": numbers(
                (
                    '2 * f["hidden"] * f["head_dim"] * (f["heads"] + f["kv_heads"])',
                    '4 * f["hidden"] * f["head_dim"] * f["heads"]',
                )
            ),
            "no output projection": numbers(
                (
                    '2 * f["hidden"] * f["head_dim"] * (f["heads"] + f["kv_heads"])',
                    'f["hidden"] * f["head_dim"] * (f["heads"] + 2 * f["kv_heads"])',
                )
            ),
            "equal as if nothing were masked": numbers(("equal_at = 2 * ", "equal_at = ")),
            "a negative length": numbers(("equal_at = ", "equal_at = -")),
            "a pair too many": numbers(("+ 1) // 2", "+ 1) // 2 + 1")),
        },
        "right": {
            "pairs by counting": numbers(
                ('f["tokens"] * (f["tokens"] + 1) // 2', 'sum(range(1, f["tokens"] + 1))')
            ),
            "through FLOPs a token": numbers(
                (
                    '2 * f["hidden"] * (f["heads"] + f["kv_heads"]) / f["heads"] - 1',
                    '2 * projection_weights / (f["layers"] * f["heads"] * 2 * f["head_dim"])',
                )
            ),
        },
    },
    "01.rms_norm": {
        "wrong": {
            "divides by the norm": norm(("square().mean(", "square().sum(")),
            "LayerNorm": norm(("x32 = x.float()", "x32 = x.float() - x.float().mean(-1, keepdim=True)")),
            "one plus the weight": norm(("return weight *", "return (1 + weight) *")),
            "forgets the weight": norm(("return weight * ", "return ")),
            "forgets eps": norm((" + eps)", ")")),
            "eps outside the root": norm(
                (
                    "torch.rsqrt(x32.square().mean(dim=-1, keepdim=True) + eps)",
                    "1 / (x32.square().mean(dim=-1, keepdim=True).sqrt() + eps)",
                )
            ),
            "one mean for all rows": norm(("mean(dim=-1, keepdim=True)", "mean()")),
            "mean over the tokens": norm(("mean(dim=-1, keepdim=True)", "mean(dim=0, keepdim=True)")),
            "squares in half precision": norm(("x.float()", "x")),
            "result in float32": norm((".to(x.dtype)", "")),
            "forgets to return": norm(("return weight", "result = weight")),
            "a constant eps": norm(("+ eps", "+ 1e-6")),
        },
        "right": {"in double": NORM_IN_DOUBLE, "the library's, in float32": LIBRARY_NORM},
    },
    "01.rope": {
        "wrong": {
            "counts positions from 0": rope(("positions[:, None]", "torch.arange(x.shape[2])[:, None]")),
            "counts from the first position": rope(
                ("positions[:, None]", "(positions - positions[0])[:, None]")
            ),
            "turns backwards": rope(
                (
                    "(first * cos - second * sin, second * cos + first * sin)",
                    "(first * cos + second * sin, second * cos - first * sin)",
                )
            ),
            "both with a minus": rope(("second * cos + first * sin", "second * cos - first * sin")),
            "pairs neighbours": rope(
                ("x.float().chunk(2, dim=-1)", "(x.float()[..., ::2], x.float()[..., 1::2])"),
                ("torch.cat(turned, dim=-1)", "torch.stack(turned, dim=-1).flatten(-2)"),
            ),
            "exponent i/D": rope(("torch.arange(0, D, 2, dtype=torch.float32)", "torch.arange(D // 2)")),
            "all pairs turn alike": rope(
                ("theta ** (-torch.arange(0, D, 2, dtype=torch.float32) / D)", "torch.ones(D // 2)")
            ),
            "later pairs turn faster": rope(("theta ** (-torch", "theta ** (torch")),
            "a fixed theta": rope(("theta ** (", "10_000.0 ** (")),
            "angles in the dtype of x": rope(
                (
                    "positions[:, None].float() * frequencies",
                    "positions[:, None].to(x.dtype) * frequencies.to(x.dtype)",
                )
            ),
            "result in float32": rope((".to(x.dtype)", "")),
            "turns twice as far": rope(
                ("angles.cos(), angles.sin()", "(2 * angles).cos(), (2 * angles).sin()")
            ),
        },
        "right": {"rotate_half": ROPE_ROTATE_HALF, "complex numbers": ROPE_AS_COMPLEX},
    },
    "01.attention": {
        "wrong": {
            "mask at the top left": attention(("torch.arange(S - T, S)", "torch.arange(T)")),
            "no mask": attention((MASKED, "")),
            "no mask with fewer queries": attention((MASKED, f"if T == S:\n        {MASKED}")),
            "a token does not see itself": attention((") > positions", ") >= positions")),
            "mask the wrong way round": attention((") > positions", ") < positions")),
            "mask after softmax": attention(
                (MASKED, ""),
                (
                    "scores.softmax(dim=-1)",
                    "scores.softmax(dim=-1).masked_fill(torch.arange(S) > positions, 0.0)",
                ),
            ),
            "softmax over the queries": attention(("softmax(dim=-1)", "softmax(dim=-2)")),
            "no scale": attention((" / math.sqrt(D)", "")),
            "scale by D": attention(("math.sqrt(D)", "D")),
            "scale by the whole width": attention(("math.sqrt(D)", "math.sqrt(H * D)")),
            "heads in the wrong order": attention(
                ("q.float().view(B, G, H // G, T, D)", "q.float().view(B, H // G, G, T, D).transpose(1, 2)"),
                ("out.view(B, H, T, D)", "out.transpose(1, 2).reshape(B, H, T, D)"),
            ),
            "heads and tokens swapped at the end": attention(
                ("out.view(B, H, T, D)", "out.flatten(1, 2).transpose(1, 2)")
            ),
            "only as many heads as keys": attention(
                ("q.float().view(B, G, H // G, T, D)", "q.float()[:, :G, None]"),
                ("out.view(B, H, T, D)", "out[:, :, 0]"),
            ),
            "scores in half precision": attention((".float()", "")),
            "scores rounded to half precision": attention(
                ("/ math.sqrt(D)", "/ math.sqrt(D)\n    scores = scores.to(q.dtype).float()")
            ),
            "the library's is_causal": ATTENTION_BY_SDPA.replace("attn_mask=seen", "is_causal=True"),
            "the library's, with a right mask": ATTENTION_BY_SDPA,
            "the library's, for whole prompts": attention(
                (
                    "    B, H, T, D = q.shape\n",
                    "    B, H, T, D = q.shape\n    if T == k.shape[2]:\n"
                    "        return F.scaled_dot_product_attention(\n"
                    "            q, k, v, is_causal=True, enable_gqa=True)\n",
                )
            ),
            "result in float32": attention((".to(q.dtype)", "")),
            "a large number for infinity": attention(("-math.inf", "-100.0")),
        },
        "right": {
            "loops over heads and queries": ATTENTION_BY_LOOPS,
            "einsum": ATTENTION_BY_EINSUM,
            "in numpy": ATTENTION_IN_NUMPY,
        },
    },
    "01.debug": {
        "wrong": {
            "as the colleague wrote it": "layer = colleagues_layer\n",
            "only the mask mended": debug(POSITIONS, HEADS),
            "only the positions mended": debug(MASK, HEADS),
            "only the heads mended": debug(MASK, POSITIONS),
            "the mask left": debug(MASK),
            "the positions left": debug(POSITIONS),
            "the heads left": debug(HEADS),
            "no mask at all": debug((", attn_mask=seen", "")),
            "values turned too": debug(
                ("turn(k, positions)\n", "turn(k, positions)\n    v = turn(v, positions)\n")
            ),
            "the first rows instead of the last": debug(("x = x[:, -last:] +", "x = x[:, :last] +")),
            "the residual of the normed rows": debug(("x = x[:, -last:] +", "x = rows[:, -last:] +")),
            "the first rows of all": ALL_QUERIES_THEN_CUT.replace("[:, -last:]", "[:, :last]"),
        },
        "right": {
            "all queries, cut at the end": ALL_QUERIES_THEN_CUT,
            "the library shares the heads": debug(
                ("k, v = k.repeat_interleave(copies, dim=1), v.repeat_interleave(copies, dim=1)\n    ", ""),
                ("attn_mask=seen", "attn_mask=seen, enable_gqa=True"),
            ),
        },
    },
    "01.layer": {
        "wrong": {
            "one sequence's arithmetic": layer(
                ('f["batch"] * recurrent_flops', "recurrent_flops"),
                ('f["batch"] * attention_flops', "attention_flops"),
            ),
            "sum instead of maximum": layer(
                (
                    'max(f["batch"] * attention_flops / peak, 4 * step)',
                    'f["batch"] * attention_flops / peak + 4 * step',
                ),
                (
                    'max(f["batch"] * recurrent_flops / peak, (T + 1) * step)',
                    'f["batch"] * recurrent_flops / peak + (T + 1) * step',
                ),
            ),
            "the chain once for each sequence": layer(
                ("(T + 1) * step)\nbatch", 'f["batch"] * (T + 1) * step)\nbatch')
            ),
            "no chain": layer((", (T + 1) * step)\nbatch", ", 0)\nbatch")),
            "rounded down": layer(("math.ceil", "math.floor")),
            "not rounded": layer(("math.ceil(", "float(")),
            "break-even of the wrong layer": layer(("peak / attention_flops)", "peak / recurrent_flops)")),
            "a key without its value": layer(("R / (2 * E)", "R / E")),
            "the other choice": layer(("attention_s < recurrent_s", "attention_s > recurrent_s")),
            "a choice in other words": layer(
                ('"attention" if', '"Attention" if'), ('else "recurrent"', 'else "RNN"')
            ),
        },
        "right": {
            "batch by trial": layer(
                (
                    "math.ceil((T + 1) * step * peak / attention_flops)",
                    "next(b for b in range(1, 10**6) if b * attention_flops / peak >= (T + 1) * step)",
                )
            ),
            "a chain of T steps, figures of three digits": layer(
                ("(T + 1) * step)\nbatch", "T * step)\nbatch"),
                (
                    "math.ceil((T + 1) * step * peak / attention_flops)",
                    'math.ceil(T * step * peak / float(f"{attention_flops:.3g}"))',
                ),
            ),
            "seconds of three digits": layer(
                ('"recurrent_s": recurrent_s', '"recurrent_s": float(f"{recurrent_s:.3g}")')
            ),
        },
    },
}
