"""The check of 11.plan: a capacity plan in which one step is wrong, drawn.

`plan(f, fault)` works the plan out, right where fault is "", and tells each step in words. A fault changes
one step; those after it go on with its number, as they would in the hands of whoever made it.
"""

import math
from dataclasses import dataclass

from minitransformer.course.checking import expect, expect_choice, expect_numbers, task

LETTERS = "abcdefghij"
GIVEN = """A service expects **{rate:g} requests a second** at random moments (Poisson). A prompt has
**{prompt:,} tokens** on average, of which **{hit:,}** are found in the prefix cache of the prefill
machines; an answer has **{answer:,}**. The tokens to compute differ from prompt to prompt: their standard
deviation is **{spread} of their mean**. Promised, on average over all requests: **TTFT {ttft_ms:,} ms**,
and **{tpot_ms} ms** for each token from the second on.

The model has **{weights} billion weights** in 16 bits and **{kv_kib} KiB** of cache a token. A prefill
machine computes **{tera} TFLOP/s** of prompts (measured, no further share), 2 FLOPs a weight and token;
requests are dealt to these machines at random, and each has a queue of its own. A decode machine reads
**{terabytes} TB/s** (measured too) and has **{memory_gb} GB**, of which 90 % may be used. Prefill emits
the first token; then the cache of the whole prompt goes to a decode machine, which receives **{gbit}
Gbit/s**, one cache after another.

The plan of a colleague, who makes **one mistake** and goes on with what comes of it:

| step | | comes to |
|---|---|---|
{table}"""

FAULTS = {
    "hits": "a",
    "variance": "c",
    "throughput": "c",
    "bits": "e",
    "context": "g",
    "weights": "h",
    "answer": "i",
}
WHY = {
    "a": "What the prefix cache holds is not computed.",
    "c": "The mean wait of a queue is ρ/(1-ρ) s (1 + spread²)/2, and it must leave the TTFT room for s.",
    "e": "The cache of all tokens of the prompt; a byte has 8 bits.",
    "g": "A step reads the weights, and of each request all that it has: prompt and half the answer.",
    "h": "90 % of the memory, less the weights, over the cache of a whole prompt and answer.",
    "i": "Little's law: requests a second x the seconds that each decodes, a step for each of its tokens.",
}


@dataclass(frozen=True)
class Step:
    words: str
    value: float
    unit: str = ""

    @property
    def shown(self) -> str:
        return (
            f"{self.value:,.4g} {self.unit}".strip() if self.value < 1e4 else f"{self.value:,.0f} {self.unit}"
        )


def plan(f: dict, fault: str = "") -> dict[str, Step]:
    """The steps by letter; the machines come in d and j."""
    return dict(zip(LETTERS, [*prefill_steps(f, fault), *decode_steps(f, fault)], strict=True))


BUSY = "share of the time that a machine may be busy: "


def prefill_steps(f: dict, fault: str) -> list[Step]:
    new = f["prompt"] - (0 if fault == "hits" else f["hit"])
    s = 2e9 * f["weights"] * new / (f["tera"] * 1e12)
    room, varied = f["ttft_ms"] / 1e3 - s, 1 + (0 if fault == "variance" else f["spread"] ** 2)
    x = 2 * room / (s * varied)
    wait = "s/2" if fault == "variance" else "s (1 + spread²)/2"
    busy = Step(f"{BUSY}the mean wait is ρ/(1-ρ) {wait}, and must leave the TTFT room for s", x / (1 + x))
    if fault == "throughput":
        busy = Step(f"{BUSY}all of it, a machine that waits is money lost", 1.0)
    return [
        Step("tokens to compute of a prompt", new),
        Step("seconds s of prefill: 2 x weights x tokens / FLOP/s", s, "s"),
        busy,
        Step(
            "prefill machines: requests a second x s / that share, rounded up", up(f["rate"] * s / busy.value)
        ),
    ]


def decode_steps(f: dict, fault: str) -> list[Step]:
    kv, W, read, step = 1024 * f["kv_kib"], 2e9 * f["weights"], 1e12 * f["terabytes"], f["tpot_ms"] / 1e3
    send = f["prompt"] * kv / (f["gbit"] * 1e9 / (1 if fault == "bits" else 8))
    context = f["prompt"] + f["answer"] / 2 - (f["hit"] if fault == "context" else 0)
    batch = math.floor((step * read - W) / (context * kv))
    room = 0.9e9 * f["memory_gb"] - (0 if fault == "weights" else W)
    fits = math.floor(room / ((f["prompt"] + f["answer"]) * kv))
    running = f["rate"] * step * (1 if fault == "answer" else f["answer"])
    receive = f["rate"] * send / 0.8
    read_of = "its prompt without the hits" if fault == "context" else "its prompt"
    less = "" if fault == "weights" else ", less the weights,"
    per = "/ (Gbit/s x 10⁹)" if fault == "bits" else "/ (Gbit/s x 10⁹ / 8)"
    long = "the seconds of a step" if fault == "answer" else "tokens of an answer x the seconds of a step"
    return [
        Step(f"seconds of a transfer: bytes of the cache of a prompt {per}", send, "s"),
        Step("decode machines that receiving alone takes, at most 80 % busy with it", receive),
        Step(
            f"largest batch in time: a step reads weights, and of each {read_of} and half its answer", batch
        ),
        Step(f"largest batch that fits: 90 % of the memory{less} over the cache of a whole request", fits),
        Step(f"requests that decode at once: requests a second x {long}", running),
        Step(
            "decode machines: for receiving, or for the smaller batch, rounded up",
            up(max(receive, running / max(min(batch, fits), 1))),
        ),
    ]


def up(machines: float) -> int:
    return math.ceil(machines - 1e-9)


MACHINES = [
    (8, 128, 500, 2.4, 80),
    (14, 192, 550, 3.4, 141),
    (32, 256, 1000, 6.5, 282),
    (70, 320, 3600, 19, 640),
]


def draw(rng) -> dict:
    """Drawn again until the plan is possible, and its fault buys another number of machines."""
    fault = rng.choice(list(FAULTS))
    while True:
        weights, kv_kib, tera, terabytes, memory = rng.choice(MACHINES)
        f = {
            "rate": rng.choice([10, 15, 20, 25, 30, 40, 50, 60]),
            "prompt": rng.choice([3000, 4000, 5000, 6000]),
            "answer": rng.choice([150, 200, 250, 300]),
            "spread": rng.choice([0.8, 0.9, 1.0, 1.2]),
            "tpot_ms": rng.choice([25, 30, 35, 40, 50]),
            "gbit": rng.choice([25, 50, 100, 200]),
            "weights": weights,
            "kv_kib": kv_kib,
            "tera": tera,
            "terabytes": terabytes,
            "memory_gb": memory,
        }
        f["hit"] = round(f["prompt"] * rng.choice([0.3, 0.4, 0.5]) / 100) * 100
        s = prefill_steps(f | {"ttft_ms": 1e6}, "")[1].value
        f["ttft_ms"] = 50 * round(1e3 * s * rng.choice([1.6, 2.0, 2.5]) / 50)
        if possible(f) and telling(f, fault):
            return f | {"table": table_of(plan(f, fault))}


def table_of(steps: dict[str, Step]) -> str:
    return "\n".join(f"| {letter} | {one.words} | {one.shown} |" for letter, one in steps.items())


def fault_in(f: dict) -> str:
    """Which fault the table of drawn figures holds: the figures themselves, which learners get, don't say."""
    return next(fault for fault in FAULTS if table_of(plan(f, fault)) == f["table"])


def possible(f: dict) -> bool:
    right = plan(f)
    return f["ttft_ms"] / 1e3 > 1.3 * right["b"].value and min(right["g"].value, right["h"].value) >= 8


def telling(f: dict, fault: str) -> bool:
    """The fault moves its own step by a tenth and more, and the machines."""
    right, wrong = plan(f), plan(f, fault)
    moved = abs(wrong[FAULTS[fault]].value / right[FAULTS[fault]].value - 1) > 0.1
    sane = wrong["g"].value >= 1 and wrong["b"].value < 0.9 * f["ttft_ms"] / 1e3
    return moved and sane and any(wrong[x].value != right[x].value for x in "dj")


@task("11.plan", "the fault in a capacity plan", draw=draw, question=GIVEN)
def find_fault(answer, rng, f):
    right, theirs = plan(f), plan(f, fault_in(f))
    letter = FAULTS[fault_in(f)]
    names = ("step", "value", "prefill", "decode")
    fine = isinstance(answer, dict) and set(names) <= set(answer)
    expect(fine, f"The answer should be a dict with {', '.join(names)}.")
    sound = "That step is right as far as it goes: it does what it should with the numbers before it."
    expect_choice(answer["step"], letter, LETTERS, dict.fromkeys(LETTERS, sound), given='"step"')
    likely = {
        "value": [(theirs[letter].value, "That is what the plan says."), *slips(f, letter, right)],
        "prefill": [(theirs["d"].value, AGAIN)],
        "decode": [(theirs["j"].value, AGAIN)],
    }
    mended = {"value": right[letter].value}
    expect_numbers(answer, mended, tolerance=0.02, likely=likely, given=f"step {letter}")
    machines = {"prefill": right["d"].value, "decode": right["j"].value}
    expect_numbers(answer, machines, tolerance=0, likely=likely)
    return f"Step {letter}. {WHY[letter]}"


AGAIN = "That is the plan's. Work on from the mended step: all that follows uses its number."


def slips(f: dict, letter: str, right: dict[str, Step]) -> list[tuple[float, str]]:
    """Numbers that people come to for a step they rightly suspect."""
    value, kv = right[letter].value, 1024 * f["kv_kib"]
    return {
        "a": [(f["hit"], "These are found in the cache; compute the others.")],
        "c": [(100 * value, "A share, not percent."), (plan(f, "variance")["c"].value, WHY["c"])],
        "e": [
            (1e3 * value, "In seconds."),
            (value * (1 - f["hit"] / f["prompt"]), "The decode machine has none of the prompt yet."),
        ],
        "h": [
            (
                math.floor((1e9 * f["memory_gb"] - 2e9 * f["weights"]) / ((f["prompt"] + f["answer"]) * kv)),
                WHY["h"],
            )
        ],
        "i": [(f["rate"] * f["answer"], "Times the seconds that each token takes.")],
    }.get(letter, [])
