"""The check of 11.pools: pools within a budget, run in the simulator on loads that nobody has seen."""

import math
from functools import cache

import numpy as np

from minitransformer.course.checking import CheckFailed, expect, task
from minitransformer.course.pool_designs import Choices, cluster_of, slo_of, workload_of
from minitransformer.roofline import DEVICES, MODELS, kv_bytes_per_token, weight_bytes
from minitransformer.simulate import Report, simulate

CHIPS = ("A100", "H100", "H200")
KEPT = 0.9
IN_HAND = 0.05  # our own design keeps its promises with so much more
LEAST = 5.0  # dollars an hour: a service for which one replica is enough asks nothing
COUNT = 300  # requests of a simulated load
MOST_TRIED = 12  # designs that we simulate before we ask for other figures

QUESTION = """**{model}** in bf16 is to answer **{rate:g} requests a second** (Poisson). Prompts have
**{prompt:,} tokens** at the median and answers **{answer:,}**, both lognormal with **σ = {spread}**;
nothing is shared between them. Promised: **TTFT at most {ttft_ms:,} ms and TPOT at most {tpot_ms} ms,
both, for 90 of 100 requests**. You may rent A100s, H100s and H200s, one chip a replica, at the prices of
`DEVICES`, for at most **{dollars:g} dollars an hour** altogether. Prefill reaches **{flops_share} %** of
the peak, reading **{read_share} %** of the bandwidth, and each step costs **{step_ms} ms** besides.
Between replicas, 400 Gbit/s."""

SERVICES = [  # prompt, answer, TTFT in ms, TPOT in ms: tight in the one, in the other, or in both
    (2500, 120, 1200, 18),
    (3000, 150, 1500, 20),
    (2000, 200, 1000, 16),
    (1500, 250, 400, 50),
    (1000, 300, 300, 45),
    (2000, 150, 600, 25),
]


def draw(rng) -> dict:
    """Drawn again until a design of ours keeps its promises; it sets the budget."""
    while True:
        prompt, answer, ttft_ms, tpot_ms = rng.choice(SERVICES)
        f = {
            "model": "Llama-3-8B",
            "rate": rng.choice([8, 10, 12, 15]),
            "prompt": prompt,
            "answer": answer,
            "spread": rng.choice([0.5, 0.6, 0.7]),
            "ttft_ms": ttft_ms,
            "tpot_ms": tpot_ms,
            "flops_share": rng.choice([45, 50, 55]),
            "read_share": rng.choice([65, 70, 75]),
            "step_ms": rng.choice([2, 3, 4]),
        }
        price = least_price(tuple(f.items()))
        if price and price > LEAST:
            return f | {"dollars": round(1.06 * price, 1)}


def designs() -> list[tuple[tuple, Choices]]:
    """Pools worth a look: one kind of chip a role, few replicas."""
    few, budgets = range(1, 4), (256, 512, 2048)
    whole = [
        ((("both", chip, n),), Choices(step_tokens=b)) for chip in CHIPS for n in range(1, 6) for b in budgets
    ]
    split = [
        ((("prefill", chip, p), ("decode", other, d)), Choices())
        for chip in CHIPS
        for other in CHIPS
        for p in few
        for d in few
    ]
    return whole + split


def may_do(f: dict, pools: tuple, chips: int = 1) -> bool:
    """Whether the napkin, on averages, lets these pools through: what it refuses can't keep the promises."""
    model, mean = MODELS[f["model"]], math.exp(f["spread"] ** 2 / 2)
    prompt, answer, rate = f["prompt"] * mean, f["answer"] * mean, f["rate"]
    busy = 0.0
    for role, chip, count in pools:
        replica = chips * DEVICES[chip]
        flops, read = replica.peak() * f["flops_share"] / 100, replica.bandwidth * f["read_share"] / 100
        if role != "decode":
            busy = rate * 2 * model.num_parameters * prompt / flops / count
        if role != "prefill":
            one = f["step_ms"] / 1e3 + weight_bytes(model) / read
            each = (prompt + answer / 2) * kv_bytes_per_token(model) / read
            left = 1 - rate * answer * each / count - (busy if role == "both" else 0)
            if left <= 0 or one / left > f["tpot_ms"] / 1e3:
                return False
    return busy < 0.9


def kept(f: dict, pools, choices: Choices, seeds) -> list[Report]:
    workload, cluster = workload_of(f, count=COUNT), cluster_of(f, pools, choices)
    return [simulate(workload, cluster, seed=seed) for seed in seeds]


def attained(f: dict, reports: list[Report]) -> float:
    """Of the median load: one in which chance crowds everybody together says little of a design."""
    return float(np.median([report.attainment(slo_of(f)) for report in reports]))


@cache
def least_price(figures: tuple) -> float | None:
    """Dollars an hour of the cheapest of `designs` that keeps the promises with some in hand."""
    f = dict(figures)
    priced = [
        (cluster_of(f, *design).price_per_hour, *design) for design in designs() if may_do(f, design[0])
    ]
    for price, pools, choices in sorted(priced, key=lambda row: row[0])[:MOST_TRIED]:
        if all(attained(f, kept(f, pools, choices, [seed])) >= KEPT + IN_HAND for seed in (1, 2)):
            return price
    return None


@task("11.pools", "pools within a budget", draw=draw, question=QUESTION)
def pools(answer, rng, f):
    pools, choices = design_in(answer)
    try:
        cluster = cluster_of(f, pools, choices)
    except ValueError as error:
        raise CheckFailed(f"The simulator refuses the design: {error}.") from None
    roles = {pool.role for pool in cluster.pools}
    strange = [chip for _, chip, _ in pools if chip not in CHIPS]
    expect(not strange, f"{strange[:1]} is not for rent: there are {', '.join(CHIPS)}.")
    price, most = cluster.price_per_hour, f["dollars"]
    reports = kept(f, pools, choices, [rng.randint(0, 2**31) for _ in range(3)])
    share, slo = attained(f, reports), slo_of(f)
    ttft, tpot = (np.concatenate([getattr(r, name) for r in reports]) for name in ("ttft", "tpot"))
    late, slow = float((ttft > slo.ttft_s).mean()), float((tpot > slo.tpot_s).mean())
    if share < KEPT:
        tails = [1e3 * np.nanquantile(values, KEPT) for values in (ttft, tpot)]
        p90 = "p90 TTFT {:,.0f} ms, p90 TPOT {:,.1f} ms".format(*tails)
        raise CheckFailed(
            f"{cluster.name} keeps both promises for {share:.0%}: {p90}. {cause(late, slow, roles, choices)}"
        )
    cost = f"costs ${price:.2f} an hour, and ${most:g} are there"
    enough = f"{cluster.name} keeps both promises for {share:.0%}, but {cost}"
    expect(price <= most, f"{enough}. Which pool, and which chip, has more in hand than it needs?")
    return f"Both promises kept on three unseen loads, for {price:.2f} dollars an hour."


def cause(late: float, slow: float, roles: set, choices: Choices) -> str:
    if "both" in roles and slow > late:
        return (
            f"Steps with up to {choices.step_tokens} tokens of prompt make everybody's tokens wait: smaller "
            "steps, more replicas, or prompts elsewhere."
        )
    if "both" in roles:
        return "Prompts queue: fuller steps read them faster (and slow the tokens down), or more replicas."
    if slow > late:
        return "The decode pool's steps are too long: more bandwidth, or fewer requests for each."
    return "The prefill pool's queue is too long: a machine that is always busy is always late."


def design_in(answer) -> tuple[tuple, Choices]:
    """The pools and choices of an answer, which should be a dict with "pools" and "step_tokens"."""
    expect(isinstance(answer, dict) and "pools" in answer, 'The answer should be a dict with "pools".')
    pools = answer["pools"]
    shape = (
        isinstance(pools, (list, tuple))
        and len(pools) > 0
        and all(isinstance(row, (list, tuple)) and len(row) == 3 for row in pools)
    )
    expect(shape, f'"pools" should be a list of (role, chip, how many), but {pools!r} came.')
    whole = all(isinstance(n, int) and not isinstance(n, bool) and 1 <= n <= 64 for _, _, n in pools)
    expect(whole, f"A pool has a whole number of replicas, from 1 to 64: {pools!r} came.")
    choices = {name: answer[name] for name in ("chips", "step_tokens", "link_gbit") if name in answer}
    for name, value in choices.items():
        fine = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 100_000
        expect(fine, f'"{name}" should be a whole number of at least 1, but {value!r} came.')
    return tuple(tuple(row) for row in pools), Choices(**choices)
