"""Checks of exercise 03, prefill and decode: the tasks in which code is written or mended.

The two about delays in numbers, 03.delays and 03.chunk, are in delays.py.
"""

import itertools
import math
from functools import partial

import torch

from minitransformer.course.checking import Built, expect, expect_close, expect_equal, expect_number, task
from minitransformer.course.checks import delays  # noqa: F401, registers its tasks

# --- 03.sample ------------------------------------------------------------------------------------------


def cut(scores, temperature: float, top_k: int, top_p: float, fault: str = ""):
    """One row's distribution [V] in float64, a token at a time; `fault` names a mistake to make."""
    scores = scores.double()
    order = sorted(range(len(scores)), key=lambda i: -scores[i].item())
    wanted = torch.zeros(len(scores), dtype=torch.float64)
    if temperature == 0:
        wanted[order[0]] = 1
        return wanted
    tempered = (scores / temperature).softmax(0)
    if fault == "top-p before temperature":
        top_p_probs = scores.softmax(0)
    elif fault == "top-p before top-k":
        top_p_probs = tempered
    else:
        stays = torch.zeros(len(scores), dtype=torch.bool)
        stays[order[: top_k or len(order)]] = True
        top_p_probs = torch.where(stays, tempered, 0.0)
        top_p_probs = top_p_probs / top_p_probs.sum()
    mass = 0.0
    for i in order[: top_k or len(order)]:
        reached = mass + (top_p_probs[i].item() if fault == "drops the token that reaches p" else 0)
        if reached >= top_p < 1:
            break
        wanted[i], mass = tempered[i], mass + top_p_probs[i].item()
    if fault == "sum below 1":
        return wanted
    wanted = wanted / wanted.sum()
    return wanted[order] if fault == "sorted" else wanted


FAULTS = {
    "drops the token that reaches p": "The token with which p is reached stays too.",
    "top-p before top-k": "top-p cuts what top-k left, scaled to sum to 1.",
    "top-p before temperature": "The temperature comes first, also for top-p.",
    "sum below 1": "What is left must be scaled up to sum to 1.",
    "sorted": "The probabilities are in sorted order: put each back to its token.",
}


def draw_row(rng, V: int):
    """Logits and settings of one row. p lies amid the mass of a token, where rounding can't decide."""
    scores = 2 * rng.randn(V)
    if V > 8 and rng.randint(0, 3) == 0:
        scores[rng.permutation(V)[:3]] = -math.inf
    temperature = rng.choice([0.0, 0.4, 1.0, 1.7])
    top_k = rng.choice([0, 1, 2, V // 2, V, V + 5])
    kept = cut(scores, temperature, top_k, 1.0).sort(descending=True).values
    sizes = [i for i in range(len(kept)) if kept[i] > 0.01]
    i = rng.choice(sizes)
    top_p = rng.choice([1.0, (kept[:i].sum() + kept[i] / 2).item()])
    return scores, temperature, top_k, top_p


SHAPES = [(1, 5), (8, 40), (6, 300), (1, 1), (16, 11)]


def telling_rows(rng):
    """Rows on which every order of the cuts gives another result, however the tokens are shuffled."""
    likely_first = torch.tensor([0.4, 0.3, 0.2, 0.1]).log() + rng.randn(1)
    settings = [(1.0, 2, 0.5), (1.0, 3, 0.42), (2.0, 0, 0.5), (0.5, 0, 0.45), (0.0, 3, 0.9)]
    return [(likely_first[rng.permutation(4)], *setting) for setting in settings]


@task("03.sample", "sampling for a whole batch")
def sample(answer, rng):
    batches = [[draw_row(rng, V) for _ in range(B)] for B, V in SHAPES]
    for rows in [*batches, telling_rows(rng)]:
        B, V = len(rows), len(rows[0][0])
        logits, temperature, top_k, top_p = zip(*rows, strict=True)
        settings = torch.tensor(temperature), torch.tensor(top_k), torch.tensor(top_p)
        came = answer(torch.stack(logits), *settings)
        expect(isinstance(came, torch.Tensor), "next_token_probs should return a tensor.")
        given = f"a batch of {B} over a vocabulary of {V}"
        expect_equal(list(came.shape), [B, V], given, name="the shape")
        for b, row in enumerate(rows):
            named = dict(zip(("temperature", "top_k", "top_p"), row[1:], strict=True))
            setting = ", ".join(f"{name}={value:g}" for name, value in named.items())
            likely = [(lambda r=row, f=fault: cut(*r, fault=f), why) for fault, why in FAULTS.items()]
            likely += row_mix_ups(rows, b)
            expect_close(came[b], cut(*row), f"row {b} of {given}, {setting}", likely, tolerance=1e-4)


def row_mix_ups(rows, b: int):
    """This row's logits under the settings of the first row, or without top-k or top-p."""
    scores, temperature, top_k, top_p = rows[b]
    return [
        (lambda: cut(scores, *rows[0][1:]), "Each row has settings of its own."),
        (lambda: cut(scores, temperature, 0, top_p), "top_k was not applied."),
        (lambda: cut(scores, temperature, top_k, 1.0), "top_p was not applied."),
        (lambda: cut(scores, 1.0, top_k, top_p), "The temperature was not applied."),
    ]


# --- 03.stop --------------------------------------------------------------------------------------------


def visible(text: str, stop: list[str]) -> tuple[str, bool]:
    """What of `text` may be shown, and whether a stop string is complete in it. Character by character."""
    for end in range(1, len(text) + 1):
        starts = [end - len(s) for s in stop if text[:end].endswith(s)]
        if starts:
            return text[: min(starts)], True
    held = max((n for s in stop for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
    return text[: len(text) - held], False


def wrong_texts(text: str, stop: list[str]):
    """What people show instead, with the reason why it is wrong."""
    shown, complete = visible(text, stop)
    if complete:
        found = sorted((text.find(s), s) for s in stop if s in text)
        begins, s = found[0]
        yield text[: begins + len(s)], "The stop string itself must not come out."
        yield text[:begins], "The stop string that is complete first counts, not the one that begins first."
        yield text, "A stop string is complete, and the text went on."
    else:
        yield text, "The end of the text may still become a stop string: hold it back."
        longest = max((len(s) - 1 for s in stop), default=0)
        yield (
            text[: len(text) - longest],
            "Hold back only what a stop string begins with, not a fixed number.",
        )
        for n in range(len(shown)):
            yield text[:n], "Text that can't be part of a stop string is held back, or was lost."


# What random texts may miss: (stop strings, pieces).
DIRECTED = [
    (["abca", "bc"], ["bbabcab"]),  # what begins first is not complete first
    (["aabb", "ab"], ["caabbc"]),  # nor is what is listed first
    (["bba", "ab", "aabba"], ["aabbab"]),
    (["aaaa", "ca"], ["bcb", "aaa"]),  # held back to the end, and no stop string
    (["ab"], ["bba", "", "bb", "ab", "b"]),  # goes on after the stop
]


@task("03.stop", "stop strings in a stream")
def stop(answer, rng):
    for stops, cuts in DIRECTED:
        feed(answer, "".join(cuts), stops, cuts)
    cases = [["aab"], ["ab", "aabb"], ["abca", "bc"], ["b", "ab"], ["aaaa"], [], ["abab", "ba"], ["c"]]
    for stops in cases:
        for size in (1, 3, 12):
            text = "".join(rng.choice("aabbc" if rng.randint(0, 2) else "ab") for _ in range(16))
            feed(answer, text, stops, pieces(rng, text, size))


def pieces(rng, text: str, most: int) -> list[str]:
    """The text in pieces of 0 to `most` characters."""
    cuts = []
    while text:
        n = rng.randint(0, most + 1)
        cuts.append(text[:n])
        text = text[n:]
    return [*cuts, ""]


def feed(answer, text: str, stops: list[str], cuts: list[str]):
    stream, given, shown = answer(stops), "", ""
    for piece in cuts:
        given += piece
        came = stream.push(piece)
        where = f"stop={stops} and the pieces {cuts}, after {given!r}"
        expect(isinstance(came, str), f"For {where}, push should return a string.")
        shown += came
        wanted, complete = visible(given, stops)
        expect_equal(shown, wanted, where, wrong_texts(given, stops), name="the text shown so far")
        expect_equal(bool(stream.stopped), complete, where, name="stopped")
    wanted, complete = visible(text, stops)
    rest = "" if complete else text[len(wanted) :]
    where = f"stop={stops} and the pieces {cuts}"
    lost = [("", "What was held back for a stop string that never came belongs to the text.")]
    expect_equal(stream.finish(), rest, where, lost if rest else (), name="what finish returns")


# --- 03.mask --------------------------------------------------------------------------------------------


def attention(q, k, v, faults: tuple[str, ...] = ()):
    """Causal attention in float64, one head and one query at a time. -> [B, H, T, D]"""
    B, H, T, D = q.shape
    G, S = k.shape[1], k.shape[2]
    out = torch.zeros(B, H, T, D, dtype=torch.float64)
    for b, h, t in itertools.product(range(B), range(H), range(T)):
        g = h % G if "tiled" in faults else h // (H // G)
        last = t if "top left" in faults else S - T + t
        if "blind" in faults:
            last = S - 1
        if "behind" in faults:
            last = max(last - 1, 0)
        keys, values = k[b, g, : last + 1].double(), v[b, g, : last + 1].double()
        out[b, h, t] = (keys @ q[b, h, t].double() / math.sqrt(D)).softmax(0) @ values
    return out


MASK_FAULTS = {
    ("top left",): "The mask is aligned top left: the newest query must see every key.",
    ("tiled",): "Query head h belongs to key/value head h // (H/G): repeat_interleave, not repeat.",
    ("tiled", "top left"): "The mask is aligned top left, and the key/value heads are repeated in turns.",
    ("blind",): "Nothing is masked: a chunk's tokens see those that follow them.",
    ("behind",): "A token does not see itself.",
}


@task("03.mask", "attention for any chunk")
def mask(answer, rng):
    for B, H, G, T, S, D in [
        (2, 2, 2, 5, 5, 8),
        (1, 2, 2, 1, 7, 8),
        (2, 3, 3, 3, 8, 4),
        (1, 4, 2, 4, 4, 8),
        (2, 6, 2, 1, 9, 4),
        (1, 8, 2, 5, 12, 4),
        (1, 4, 1, 2, 3, 8),
        (1, 4, 2, 1, 1, 4),
    ]:
        q, k, v = rng.randn(B, H, T, D), rng.randn(B, G, S, D), rng.randn(B, G, S, D)
        given = f"H={H} query heads, G={G} key/value heads, T={T} queries, S={S} keys"
        likely = [(partial(attention, q, k, v, faults), why) for faults, why in MASK_FAULTS.items()]
        expect_close(answer(q, k, v), attention(q, k, v), given, likely, name="the output")


# --- 03.clock -------------------------------------------------------------------------------------------


@task("03.clock", "a clock that is too fast")
def clock(answer, rng):
    for n in (2, 3, 17):
        prefill, decode, sampling = rng.uniform(0.1, 0.9), rng.uniform(0.01, 0.05), rng.uniform(0.004, 0.009)
        started, waited = rng.uniform(5, 500), rng.uniform(0.05, 0.4)
        gpu = Built("VirtualGPU", prefill=prefill, decode=decode, sample=sampling, started=started)
        came = answer(gpu, started - waited, n)
        given = f"{n} tokens, a prefill of {prefill:.3f} s, steps of {decode + sampling:.4f} s"
        given += f", and {waited:.3f} s in a queue before"
        pair = isinstance(came, (list, tuple)) and len(came) == 2
        expect(pair, f"For {given}, measure should return two numbers: TTFT and TPOT.")
        first, step = prefill + sampling, decode + sampling
        ttft_likely = [
            (first, "The time in the queue belongs to the TTFT: it runs from the arrival."),
            (waited, "The clock stopped before the token was there: the calls only queue work."),
            (waited + prefill, "The first token is there after sampling, not after prefill."),
        ]
        tpot_likely = [
            ((n - 1) * step / n, "Between n tokens lie n - 1 gaps."),
            ((first + (n - 1) * step) / n, "That averages over the first token too."),
            ((first + (n - 1) * step) / (n - 1), "The wait for the first token is not part of the TPOT."),
            (decode, "Sampling belongs to a step."),
            ((n - 1) * step, "That is all steps together."),
            ((n - 2) * step / (n - 1), "The last token was not waited for."),
        ]
        options = {"tolerance": 0.01, "unit": "s", "given": given}
        expect_number(came[0], waited + first, likely=ttft_likely, name="TTFT", **options)
        expect_number(came[1], step, likely=tpot_likely, name="TPOT", **options)
