"""Answers to exercise 03 that are wrong in ways that people really write, and other right ones.

Most are the solution with a small change (edits.py).
"""

from answers.edits import Solution
from answers.ex03_whole import (
    BY_POSITIONS,
    BY_THRESHOLD,
    CHARACTER_BY_CHARACTER,
    FIXED_HOLD,
    GROUPED_SDPA,
    ONLY_IN_PIECE,
    ROW_BY_ROW,
    WAITS_AT_THE_END,
    WAITS_TWICE,
    WHOLE_TEXT,
)

SOLUTION = Solution("03_prefill_and_decode")
delays = SOLUTION.edits("delays-answer")
sample = SOLUTION.edits("sample-answer")
stop = SOLUTION.edits("stop-answer")
mask = SOLUTION.edits("mask-answer")
clock = SOLUTION.edits("clock-answer")
chunk = SOLUTION.edits("chunk-answer")


FIRST_WAIT = "gpu.item()  # the first token is there when the host has it"
CACHE = 'f["users"] * (f["prompt"] + f["answer"] / 2) * f["kv_kb"]'
PICK = "keeps[len(keeps) // 2]"
ANSWER = '"ttft_ms": ttft_ms, "gap_ms": gap_ms, "knee": knee'

LINEAR = """LINEAR = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")


def linear(t):
    ops = prefill_operators(config, 1, t, "bf16")
    return [ops[name] for name in LINEAR]


"""
KNEE_OF_EACH = (
    LINEAR
    + """knee = next(
    t for t in range(1, 2000) if all(device.bound(cost, "bf16") == "compute" for cost in linear(t))
)
napkin_knee = device.peak"""
)
KNEE_OF_ALL = (
    LINEAR
    + """ridge = device.ridge("bf16")
knee = next(
    t for t in range(1, 2000) if sum(c.flops for c in linear(t)) > ridge * sum(c.bytes for c in linear(t))
)
napkin_knee = device.peak"""
)

ANSWERS = {
    "03.delays": {
        "wrong": {
            "one FLOP a weight": delays(("(2 * f", "(f")),
            "reaches the whole peak": delays(('f["share"] * ', "")),
            "one chip": delays(('f["share"] * f["chips"]', 'f["share"]')),
            "the cache of one conversation": delays((CACHE, CACHE.replace('f["users"] * ', ""))),
            "no cache at all": delays(("/ 8 + cache_gb", "/ 8")),
            "prompt without answer": delays((' + f["answer"] / 2', "")),
            "bits for bytes": delays(('f["bits"] / 8', 'f["bits"]')),
            "one conversation's rate": delays(('1e3 * f["users"] / tpot_ms', "1e3 / tpot_ms")),
            "the ratio turned round": delays(
                ('"prefill_per_decode": prefill_per_decode', '"prefill_per_decode": 1 / prefill_per_decode')
            ),
        },
        "right": {
            "rounded to three digits": delays(('"ttft_ms": ttft_ms', '"ttft_ms": float(f"{ttft_ms:.3g}")')),
            "by hours of work": delays(
                (
                    '(f["prompt"] / prefill_rate) / (f["answer"] / decode_tokens_per_s)',
                    'f["prompt"] * decode_tokens_per_s / prefill_rate / f["answer"]',
                )
            ),
        },
    },
    "03.sample": {
        "wrong": {
            "drops the token that reaches p": sample(("probs.cumsum(-1) - probs  #", "probs.cumsum(-1)  #")),
            "does not scale up": sample(("    probs = probs / probs.sum(-1, keepdim=True)\n", "")),
            "in sorted order": sample(
                ("torch.zeros_like(probs).scatter(-1, order, probs)", "probs"),
            ),
            "divides by a temperature of 0": sample(
                ("torch.where(greedy, 1.0, temperature.double())", "temperature.double()")
            ),
            "0 keeps no token": sample(("torch.where(top_k == 0, V, top_k)", "top_k")),
            "settings of the first row": sample(
                (
                    "    V = logits",
                    "    top_k, top_p = top_k[:1].expand(len(top_k)), top_p[:1]\n    V = logits",
                )
            ),
            "top-p without temperature": sample(
                (
                    "    before = probs.cumsum(-1) - probs",
                    "    plain = scores * torch.where(greedy, 1.0, temperature.double())[:, None]\n"
                    "    plain = plain.masked_fill(torch.arange(V) >= most, -torch.inf).softmax(-1)\n"
                    "    before = plain.cumsum(-1) - plain",
                )
            ),
            "top-p before top-k": sample(
                (
                    "    before = probs.cumsum(-1) - probs",
                    "    plain = scores.softmax(-1)\n    before = plain.cumsum(-1) - plain",
                )
            ),
        },
        "right": {"row by row": ROW_BY_ROW, "by thresholds": BY_THRESHOLD},
    },
    "03.stop": {
        "wrong": {
            "looks at one piece at a time": ONLY_IN_PIECE,
            "holds back a fixed number": FIXED_HOLD,
            "shows the stop string": stop(("[: min(found)[1]]", "[: min(found)[0]]")),
            "the first to begin": stop(
                ("(text.find(s) + len(s), text.find(s))", "(text.find(s), text.find(s))")
            ),
            "the first in the list": stop(("min(found)[1]", "found[0][1]")),
            "forgets what was held": stop(("return rest", 'return ""')),
            "holds the shortest": stop(("hold = max(hold, n)", "hold = hold or n")),
            "goes on after the stop": stop(('        if self.stopped:\n            return ""\n', "")),
        },
        "right": {"character by character": CHARACTER_BY_CHARACTER, "the whole text again": WHOLE_TEXT},
    },
    "03.mask": {
        "wrong": {
            "as given": mask(("attend(q, k, v):", "attend(q, k, v):\n    return broken_attend(q, k, v)")),
            "still top left": mask((".tril(S - T)", ".tril()")),
            "heads repeated in turns": mask(
                ("k.repeat_interleave(H // G, dim=1)", "k.repeat(1, H // G, 1, 1)"),
                ("v.repeat_interleave(H // G, dim=1)", "v.repeat(1, H // G, 1, 1)"),
            ),
            "off by one": mask((".tril(S - T)", ".tril(S - T - 1)")),
            "no mask": mask((".tril(S - T)", "")),
            "True for hidden": mask(("attn_mask=seen", "attn_mask=~seen")),
            "is_causal for all": mask(("attn_mask=seen", "is_causal=True")),
            "decode unmasked, chunks top left": mask(
                (
                    "    seen =",
                    "    if T == 1:\n        return F.scaled_dot_product_attention(q, k, v)\n    seen =",
                ),
                (".tril(S - T)", ".tril()"),
            ),
        },
        "right": {"by positions": BY_POSITIONS, "grouped for decode": GROUPED_SDPA},
    },
    "03.clock": {
        "wrong": {
            "as given": clock(
                ("num_tokens):", "num_tokens):\n    return broken_measure(gpu, arrival, num_tokens)")
            ),
            "from when we got it": clock(
                ("    gpu.prefill()", "    arrival = gpu.clock()\n    gpu.prefill()"),
            ),
            "does not wait for the first token": clock((FIRST_WAIT, "")),
            "divides by n": clock(("/ (num_tokens - 1)", "/ num_tokens")),
            "stops before sampling": clock(
                ("    gpu.sample()\n    " + FIRST_WAIT, "    gpu.item()"),
                ("    first = gpu.clock()", "    first = gpu.clock()\n    gpu.sample()"),
            ),
            "does not wait for the last token": clock(("        gpu.item()\n", "")),
            "all of it over n": clock(("(last - first) / (num_tokens - 1)", "(last - arrival) / num_tokens")),
        },
        "right": {"a stamp for each token": WAITS_TWICE, "waits at the ends": WAITS_AT_THE_END},
    },
    "03.chunk": {
        "wrong": {
            "the whole prompt": chunk((PICK, 'f["prompt"]'), ("table[chunk_size]", "delays(chunk_size)")),
            "tiny chunks": chunk((PICK, "32")),
            "no slack": chunk(('1e3 * f["slack"] *', "1e3 *"), ("keeps = [", "keeps = [128, 160, 192] or [")),
            "the average step": chunk(("max(steps)\n", "sum(steps) / len(steps)\n")),
            "in seconds": chunk(
                (ANSWER, ANSWER.replace("ttft_ms,", "ttft_ms / 1e3,").replace("gap_ms,", "gap_ms / 1e3,"))
            ),
            "a bf16 weight of one byte": chunk(("* 2 / (2 * device", "/ (2 * device")),
            "the knee of one FLOP a weight": chunk(("* 2 / (2 * device", "* 2 / (device")),
            "the newcomer alone": chunk(
                ('[1] * f["users"] + [chunk]', "[chunk]"),
                ('[f["context"]] * f["users"] + [read]', "[read]"),
            ),
            "chunks that never have a past": chunk(("+ [read]", "+ [0]")),
        },
        "right": {
            "the largest that keeps the gap": chunk((PICK, "keeps[-1]")),
            "the smallest that keeps the TTFT": chunk((PICK, "keeps[0]")),
            "the knee of the last layer to cross": chunk(("knee = device.peak", KNEE_OF_EACH)),
            "the knee of all linear layers together": chunk(("knee = device.peak", KNEE_OF_ALL)),
        },
    },
}
