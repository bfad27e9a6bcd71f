"""The check of 10.pools: a design for a drawn load, run by the model of two pools in pool_model.py."""

import math

from minitransformer.course.checking import expect, expect_number, task
from minitransformer.course.checks.pool_model import Job, Pace, drawn_jobs, simulate_pools

POOLS = """**{rate} requests a second** arrive at random moments. **{fresh_percent}%** of them are fresh
prompts of **{least_fresh:,} to {most_fresh:,} tokens**. The others are further turns of a talk whose earlier
text is cached where it decodes: **{least_turn} to {most_turn} tokens** of each are new. Answers have
**{least_answer} to {most_answer} tokens**. All are evenly drawn.

A machine of either kind costs 1.0 an hour. A *prefill* machine reads a prompt in **{fixed_ms} ms, and
{token_us} µs more for each uncached token**, one prompt at a time. A *decode* machine's step takes
**{step_ms} ms, and {seq_us} µs more for each request that runs there**; a prompt that is read there makes one
step longer by {token_us} µs for each token. A token's keys and values are **{kv_kb} kB** (1 kB is 1,000
bytes), sent layer by layer while the prompt is computed. A link costs, for each machine of both pools:
{link_prices}.

Promised to 95 of 100: **TTFT at most {ttft_ms:,} ms; TPOT at most {tpot_ms} ms; no pause between two tokens
above {gap_ms} ms**."""

LINKS = {10: 0.02, 25: 0.05, 100: 0.15, 400: 0.5}  # Gb/s: price an hour for each machine
LOADS, COUNT = 3, 600  # simulated loads, and requests of each
KEPT = 0.95
NAMES = ("prefill_machines", "decode_machines", "link_gbps", "local_below")


def draw_pools(rng) -> dict:
    """Drawn again until our own design keeps all promises on several loads, with something in hand, and
    the next slower link would break one."""
    prices = ", ".join(f"{gbps} Gb/s {price}" for gbps, price in LINKS.items())
    while True:
        fresh, answer = rng.choice([2000, 4000, 6000]), rng.choice([120, 200, 300])
        f = {
            "rate": rng.choice([12, 16, 20, 24, 30]),
            "fresh_percent": rng.choice([20, 30, 40]),
            "least_fresh": fresh // 2,
            "most_fresh": fresh + fresh // 2,
            "least_turn": 20,
            "most_turn": rng.choice([80, 120, 160]),
            "least_answer": answer // 2,
            "most_answer": answer + answer // 2,
            "fixed_ms": rng.choice([10, 15, 20]),
            "token_us": rng.choice([40, 60, 80, 100]),
            "step_ms": rng.choice([10, 12, 15]),
            "seq_us": rng.choice([150, 200, 250]),
            "kv_kb": rng.choice([64, 98, 131, 164]),
            "tpot_ms": rng.choice([24, 28, 32]),
            "link_prices": prices,
        }
        f["gap_ms"] = 10 * math.ceil((1.2 * f["tpot_ms"] + 3e-3 * f["token_us"] * f["most_turn"]) / 10)
        f["ttft_ms"] = 100 * math.ceil((f["fixed_ms"] + 2.5e-3 * f["token_us"] * fresh) / 100)
        if telling(f):
            return f


def telling(f: dict) -> bool:
    ours = pools_design(f)
    whole = 3 <= ours["prefill_machines"] <= 14 and 3 <= ours["decode_machines"] <= 14
    if (
        not whole
        or ours["link_gbps"] == min(LINKS)
        or 1e-3 * f["token_us"] * f["least_fresh"] < 1.5 * f["gap_ms"]
    ):
        return False
    slower = ours | {"link_gbps": max(gbps for gbps in LINKS if gbps < ours["link_gbps"])}
    safe = min(shares(f, served(f, ours, 1))) > 0.985
    return safe and min(shares(f, served(f, slower, 1))) < 0.9


def pace_of(f: dict, gbps: float) -> Pace:
    milli, micro = 1e-3, 1e-6
    seconds = (f["fixed_ms"] * milli, f["token_us"] * micro, f["step_ms"] * milli, f["seq_us"] * micro)
    return Pace(*seconds, kv_bytes=f["kv_kb"] * 1e3, link=gbps * 1e9 / 8)


def mean(f: dict, name: str) -> float:
    return (f[f"least_{name}"] + f[f"most_{name}"]) / 2


def travelling_gbps(f: dict, local_below: int) -> float:
    """Gb/s of keys and values that leave the prefill pool, on average."""
    parts = {"fresh": f["fresh_percent"] / 100, "turn": 1 - f["fresh_percent"] / 100}
    tokens = 0.0  # a request, on average
    for kind, share in parts.items():
        sizes = range(f[f"least_{kind}"], f[f"most_{kind}"] + 1)
        tokens += share * sum(n for n in sizes if n >= local_below) / len(sizes)
    return f["rate"] * tokens * f["kv_kb"] * 8e3 / 1e9


def pools_design(f: dict) -> dict:
    """Our own design, on a napkin."""
    fresh = f["rate"] * f["fresh_percent"] / 100  # a second
    busy = fresh * (f["fixed_ms"] / 1e3 + f["token_us"] / 1e6 * mean(f, "fresh"))
    prefill = math.ceil(busy / 0.65)
    # Turns take time from steps; a step that keeps the TPOT has (tpot - step) / seq requests; then Little.
    reading = (f["rate"] - fresh) * mean(f, "turn") * f["token_us"] / 1e6  # machines
    tpot = 0.9 * f["tpot_ms"]
    running = f["rate"] * mean(f, "answer") * tpot / 1e3
    decode = math.ceil((running * f["seq_us"] / 1e3 + reading * tpot) / (tpot - f["step_ms"]))
    makes = 8 * f["kv_kb"] / f["token_us"]  # Gb/s of keys and values, while a prefill machine computes
    link = min((gbps for gbps in LINKS if gbps >= 1.3 * makes), default=max(LINKS))
    return dict(zip(NAMES, (prefill, decode, link, f["most_turn"] + 1), strict=True))


def cost(design: dict) -> float:
    """Of an hour. Where nothing is prefilled elsewhere no link is needed."""
    machines = design["prefill_machines"] + design["decode_machines"]
    return machines * (1 + (LINKS[design["link_gbps"]] if design["prefill_machines"] else 0.0))


def served(f: dict, design: dict, seed: int) -> list[Job]:
    """The jobs of LOADS loads, one after another: a single one may hold a burst that no design is meant
    for."""
    prefill, decode, gbps, local_below = (design[name] for name in NAMES)
    loads = [drawn_jobs(f, COUNT, seed + i) for i in range(LOADS)]
    for jobs in loads:
        simulate_pools(jobs, prefill, decode, local_below, pace_of(f, gbps))
    return [job for jobs in loads for job in jobs]


def shares(f: dict, jobs: list[Job]) -> tuple[float, float, float]:
    """The shares of requests that kept TTFT, TPOT and the longest pause."""
    limits = ((f["ttft_ms"], "ttft"), (f["tpot_ms"], "tpot"), (f["gap_ms"], "longest_gap"))
    return tuple(sum(getattr(j, name) <= ms / 1e3 for j in jobs) / len(jobs) for ms, name in limits)


@task("10.pools", "two pools under a promise", draw=draw_pools, question=POOLS)
def pools(answer, rng, f):
    names = (*NAMES, "kv_gbps")
    words = f"The answer should be a dict with {', '.join(names)}"
    expect(isinstance(answer, dict) and set(names) <= set(answer), f"{words}.")
    for name, least in zip(NAMES, (0, 1, 1, 0), strict=True):
        value = answer[name]
        fine = isinstance(value, int) and not isinstance(value, bool) and least <= value <= 10**6
        expect(fine, f'"{name}" should be a whole number of at least {least}, but {value!r} came.')
    expect(
        answer["link_gbps"] in LINKS,
        f'"link_gbps" should be one of {list(LINKS)}, got {answer["link_gbps"]}.',
    )
    few = answer["prefill_machines"] + answer["decode_machines"] <= 200
    expect(few, "More than 200 machines: that is a data centre, and far above what this load needs.")
    jobs = served(f, answer, rng.randint(0, 2**31))
    expect_promises(f, answer, jobs)
    ours, theirs = cost(pools_design(f)), cost(answer)
    dear = (
        f"The promises hold, but at {theirs:.2f} an hour; {ours:.2f} is enough (within 15%, or one machine)"
    )
    expect(theirs <= max(1.15 * ours, ours + 1.2), f"{dear}. {too_dear(f, answer)}")
    right = travelling_gbps(f, answer["local_below"]) if answer["prefill_machines"] else 0.0
    likely = [
        (right / 8, "Gigabits: eight times the bytes."),
        (travelling_gbps(f, 0), "Only the prompts that are sent away travel."),
        (right * 100 / f["fresh_percent"], "Only the prompts that are sent away travel."),
        (right / 1e3, "Mind the unit: kB times tokens times requests a second."),
    ]
    expect_number(answer["kv_gbps"], right, tolerance=0.05, unit="Gb/s", likely=likely, name='"kv_gbps"')


def expect_promises(f: dict, answer: dict, jobs: list[Job]):
    ttft, tpot, gap = shares(f, jobs)
    pace, remote = pace_of(f, answer["link_gbps"]), [job for job in jobs if job.remote]
    cause = why_pauses(f, pace, jobs)
    expect(gap >= KEPT or not cause, f"The longest pause was kept for {gap:.0%} of requests. {cause}.")
    seconds = LOADS * max(job.arrival for job in jobs)
    running = sum(job.times[-1] - job.times[0] for job in jobs) / seconds / answer["decode_machines"]
    full = (
        f"By Little's law {running:.0f} run at once on each of {answer['decode_machines']} decode machines: "
        f"a step of {f['step_ms'] + running * f['seq_us'] / 1e3:.1f} ms"
    )
    local = "longer by each prompt that is read there, and longer where arrivals bunch"
    expect(tpot >= KEPT, f"TPOT was kept for {tpot:.0%} of requests. {full}, {local}.")
    expect(gap >= KEPT, f"The longest pause was kept for {gap:.0%} of requests. {full}, {local}.")
    busy = sum(pace.prompt(job.uncached) for job in remote) / seconds
    words = f"Prompts sent away keep {busy:.1f} machines busy all the time"
    few = f"and you have {answer['prefill_machines']}: random arrivals need some in hand"
    expect(ttft >= KEPT, f"TTFT was kept for {ttft:.0%} of requests. {words}, {few}.")


def why_pauses(f: dict, pace: Pace, jobs: list[Job]) -> str:
    """The likely reason for long pauses; "" where neither a local prompt nor the link explains them."""
    longest = max((job.uncached for job in jobs if not job.remote), default=0)
    if 1e3 * pace.token * longest > f["gap_ms"]:
        pause = f"hold them up for {1e3 * pace.token * longest:.0f} ms"
        return f"Prompts of up to {longest:,} tokens are read where others decode, and {pause}"
    if any(job.remote for job in jobs) and pace.transfer(1) > 0.9 * pace.token:
        made, carried = 1e6 * pace.token, 1e6 * pace.transfer(1)
        link = f"and the link needs {carried:.0f} µs to carry them: what is computed waits to be sent"
        return f"A prefill machine makes a token's keys and values in {made:.0f} µs, {link}"
    return ""


def too_dear(f: dict, answer: dict) -> str:
    ours = pools_design(f)
    if answer["link_gbps"] > ours["link_gbps"]:
        return "A slower link carries a layer in the time in which the next is computed."
    if answer["prefill_machines"] > ours["prefill_machines"] + 1:
        return "Prefill machines stand idle."
    return "Decode machines could take more requests in a step."
