"""The tables of the disaggregation measurement, and its targets beside what was reached."""

from benchmarks.disaggregation_ways import STAGES, WAYS
from benchmarks.report import console, show_table

# What the package sets out to reach.
LINK_ERROR = 0.20  # of the time that bytes / bandwidth + latency gives, at sizes in between
ROUTER_S = 1e-3  # processor time a request
ROUTER_RATE = 2000  # requests a second
FIGURES = ("TTFT p50, s", "TTFT p99, s", "TPOT p50, s", "TPOT p99, s")


def load_rows(found: dict) -> list[dict]:
    """One line for each rate and way of one load."""
    rows = []
    for share, rate in found["rates"].items():
        for way in WAYS:
            one = rate[way]
            rows.append(
                {
                    "load": f"{float(share):.0%}, {rate['requests per second']:.2g}/s",
                    "way": way,
                    **{
                        f"{what}, ms": " ".join(f"{1e3 * one[f'{what} p{p}, s']:.0f}" for p in (50, 99))
                        for what in ("TTFT", "TPOT")
                    },
                    **{f"kept, {name}/s": rate for name, rate in one["goodput"].items()},
                }
            )
    return rows


def stage_rows(found: dict) -> list[dict]:
    """Where the time of a request goes, in the median, at the highest rate: every way."""
    _, rate = list(found["rates"].items())[-1]
    return [
        {"way": way} | {f"{stage}, ms": 1e3 * rate[way]["stages"][stage] for stage in STAGES} for way in WAYS
    ]


def winner_rows(loads: dict) -> list[dict]:
    """For each load and rate: which way was best, figure by figure."""
    rows = []
    for name, found in loads.items():
        for share, rate in found["rates"].items():
            row = {"load": name, "rate": f"{float(share):.0%}"}
            for figure in ("TTFT p99, s", "TPOT p99, s"):
                row[figure.removesuffix(", s")] = min(WAYS, key=lambda way: rate[way][figure])
            for promise in rate[next(iter(WAYS))]["goodput"]:
                row[promise] = _best(rate, promise)
            rows.append(row)
    return rows


def _best(rate: dict, promise: str) -> str:
    """The way with the highest goodput; "equal" where the best two differ by less than 2%."""
    kept = {way: rate[way]["goodput"][promise] for way in WAYS}
    first, second = sorted(kept, key=kept.get, reverse=True)[:2]
    return "equal" if kept[second] >= 0.98 * kept[first] else first


def target_rows(found: dict) -> list[dict]:
    """Each figure that was set out for, what was reached, and whether it was enough."""
    link, router = found["link"], found["router"]
    rate, cpu_s = router["requests per second"], router["processor time a request, s"]
    rows = [
        (
            "transfer against bytes / bandwidth + latency, largest error",
            max(link["errors"]),
            LINK_ERROR,
            False,
        ),
        ("router, processor seconds a request", cpu_s, ROUTER_S, False),
        ("router, requests a second of empty work", rate, ROUTER_RATE, True),
    ]
    return [
        {
            "figure": figure,
            "reached": reached,
            "wanted": f"at {'least' if least else 'most'} {wanted:g}",
            "met": "yes" if (reached >= wanted if least else reached <= wanted) else "NO",
        }
        for figure, reached, wanted, least in rows
    ]


def show(found: dict):
    """Prints everything, the targets last."""
    for name, load in found["loads"].items():
        alone = load["alone"]
        show_table(
            f"{name}: alone TTFT {1e3 * alone['ttft_s']:.0f} ms, TPOT {1e3 * alone['tpot_s']:.0f} ms; "
            f"at once {alone['requests_per_s']:.2g} requests/s",
            load_rows(load),
        )
        show_table("Stages at the highest rate, medians", stage_rows(load))
    promises = found["sizes"]["promises"].items()
    console.print(
        "kept: requests a second that kept a promise, in times of one request alone: "
        + "; ".join(f"{name}: TTFT {p['ttft']:g}, TPOT {p['tpot']:g}" for name, p in promises)
    )
    show_table("Who wins", winner_rows(found["loads"]))
    link = found["link"]
    console.print(
        f"Link between two processes: {1e6 * link['latency_s']:.0f} us and {link['bandwidth'] / 1e9:.2f} GB/s"
    )
    show_table("Disaggregation: what was wanted", target_rows(found))
