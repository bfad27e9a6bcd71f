"""The tables of the serving measurement, and its targets beside what was reached."""

from benchmarks.report import console, show_table
from benchmarks.turns import Ratio

# What the engine sets out to reach.
FASTER = 2.5  # times the tokens per second of the transformers library's static batching
TPOT = 0.5  # of prefill_first's p99, by chunked; also of the longest gap, which an average hides
LOST = 0.04  # of the cache's memory
OVERHEAD = 0.03  # of a step, for scheduler and block manager
FLAT = 1.1  # times the step with the fewest waiting


def load_rows(found: dict) -> list[dict]:
    """One line for each way of serving a load."""
    return [
        {
            "way": name,
            "tokens/s": one["tokens per second"],
            "times as fast": str(Ratio(**one["times as fast"])),
            **{
                f"{what}, ms": " ".join(f"{1e3 * one[f'{what} p{p}, s']:.0f}" for p in (50, 99))
                for what in ("TTFT", "TPOT", "gap")
            },
            "lost": f"{one['cache lost']:.1%}",
            "equal": f"{one['equal answers']:.0%}",
        }
        for name, one in found.items()
    ]


def part_rows(found: dict) -> list[dict]:
    """Where a step's time goes, by policy."""
    return [
        {"way": name} | {part: f"{share:.1%}" for part, share in one["parts"].items()}
        for name, one in found.items()
        if one["parts"]
    ]


def waiting_rows(rows: list[dict]) -> list[dict]:
    return [row | {name: str(Ratio(**row[name])) for name in row if name.startswith("times")} for row in rows]


def target_rows(found: dict) -> list[dict]:
    """Each figure that was set out for, what was reached, and whether it was enough."""
    together, poisson = found["all at once"], found["at random"]
    rows = [
        _target(
            f"times as fast as transformers, {policy}", together[policy]["times as fast"]["median"], FASTER
        )
        for policy in ("chunked", "prefill_first")
    ]
    for name, load in (("all at once", together), ("at random", poisson)):
        for figure in ("TPOT", "gap"):
            reached = chunked_over_prefill_first(load, f"{figure} p99, s")
            rows.append(_target(f"{figure} p99, chunked over prefill_first, {name}", reached, at_most=TPOT))
    lost = max(load["chunked"]["cache lost"] for load in (together, poisson))
    rows.append(_target("cache memory lost, chunked", lost, at_most=LOST))
    shares = [load["chunked"]["parts"]["scheduler and block manager"] for load in (together, poisson)]
    rows.append(_target("scheduler and block manager, of a step", max(shares), at_most=OVERHEAD))
    last = found["waiting"][-1]
    times = next(value for name, value in last.items() if name.startswith("times"))
    rows.append(_target(f"step with {last['waiting']} waiting", times["median"], at_most=FLAT))
    return rows


def chunked_over_prefill_first(load: dict, figure: str) -> float:
    """What chunked scheduling leaves of a figure of prefill_first: the median of the rounds."""
    return Ratio.of(*(load[policy]["rounds"][figure] for policy in ("chunked", "prefill_first"))).median


def _target(figure: str, reached: float, at_least: float | None = None, at_most: float | None = None) -> dict:
    enough = reached >= at_least if at_most is None else reached <= at_most
    wanted = f"at least {at_least:g}" if at_most is None else f"at most {at_most:g}"
    return {"figure": figure, "reached": reached, "wanted": wanted, "met": "yes" if enough else "NO"}


def show(found: dict):
    """Prints everything, the targets last."""
    sizes = found["sizes"]
    lengths = sizes["lengths"]
    budgets = ", ".join(f"{policy} {budget}" for policy, budget in sizes["budgets"].items())
    console.print(
        f"Serving: {sizes['requests']} requests, prompts of {_range(lengths['prompt'])} tokens, answers of "
        f"{_range(lengths['answer'])}; {found['model']['parameters'] / 1e6:.0f}M weights in "
        f"{found['model']['dtype']}; a step's tokens: {budgets}; transformers in batches of "
        f"{found['their batch size']}, its fastest"
    )
    show_table("All at once", load_rows(found["all at once"]))
    rate = found["requests per second at random"]
    show_table(f"At random, {rate:.2g} requests a second", load_rows(found["at random"]))
    console.print(NOTES)
    show_table("Where a step's time goes, all at once", part_rows(found["all at once"]))
    show_table("A prefix that all share", [_prefix_row(found["shared prefix"])])
    show_table("A step while others wait", waiting_rows(found["waiting"]))
    show_table("Serving: what was wanted", target_rows(found))


NOTES = (
    "Times: p50 and p99 over requests. TTFT: from when it was due. TPOT: averaged over its answer. gap: the\n"
    "longest between two of its tokens. lost: cache memory held with no token in it. equal: answers that\n"
    "are those of transformers, but for ties within rounding. At random, tokens/s follow the arrivals, and\n"
    "TPOT says little of the policy: an answer meets about the same prompts by any, in few steps or in many."
)


def _prefix_row(found: dict) -> dict:
    return {
        "shared tokens": found["shared tokens"],
        "hit rate": f"{found['hit rate']:.1%}",
        "at most": f"{found['at most']:.1%}",
        "times as fast": str(Ratio(**found["times as fast"])),
        "TTFT shorter by": str(Ratio(**found["TTFT shorter by"])),
    }


def _range(ends) -> str:
    return f"{ends[0]} to {ends[1]}"
