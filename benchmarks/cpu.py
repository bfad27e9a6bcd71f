"""This package against the transformers library, and against this machine's own limits.

    python -m benchmarks.cpu [--only PART ...] [--dtype float32] [--batch 1] [--json FILE]

generate  both libraries run their own greedy `generate` on the same random weights of a 58M-parameter
          model, in turns with each other and with probes of the machine's limits: a large matrix product,
          and a matrix-vector product over far more memory than the caches hold. All comparisons are
          within a round.
memory    the peak of decode, beside weights and cache
serving   the engine's policies and the transformers library under one load (serving.py)
disaggregation  one prefill and one decode worker against two colocated engines (disaggregation.py)
simulator  the simulator against the running engine, on the same loads (simulator.py)
"""

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks import disaggregation, disaggregation_report, opponent, serving, serving_report, simulator
from benchmarks.memory import ALLOWED, MB, decode_memory
from benchmarks.report import about, console, show_table, write_json
from benchmarks.turns import Ratio, in_turns
from minitransformer import ModelConfig, load_pretrained
from minitransformer.layers.linear import widens
from minitransformer.roofline import Device, decode_cost, dtype_name, prefill_cost
from minitransformer.roofline.measure import device_name, matmul_rate, memory_bandwidths

CPU = torch.device("cpu")
# What this package sets out to reach: how many times as fast, and which share of the machine's limit.
FASTER = {"float32": {"prefill": 1.15, "decode": 1.25}, "bfloat16": {"prefill": 1.4, "decode": 1.4}}
SHARE = {("prefill", 8): 0.7, ("decode", 1): 0.6}
PARTS = ("generate", "memory", "serving", "disaggregation", "simulator")


@dataclass(frozen=True)
class Case:
    """One comparison: a prompt of `prompt_len` random tokens a row, `new_tokens` more by each library."""

    dtype: str
    batch_size: int
    prompt_len: int = 512
    new_tokens: int = 24


def compare(case: Case, config: ModelConfig, rounds: int, seconds: float) -> dict:
    """Runs both libraries and the probes in turns; returns the figures of one case."""
    dtype = getattr(torch, case.dtype)
    ours, theirs = opponent.make_pair(config, dtype)
    input_ids = torch.randint(0, config.vocab_size, (case.batch_size, case.prompt_len))
    arithmetic = "fp32" if widens(dtype, CPU) else dtype_name(dtype)  # what a product of many rows runs in
    ways = {
        "theirs": lambda: opponent.run_theirs(theirs, input_ids, case.new_tokens),
        "ours": lambda: opponent.run_ours(ours, input_ids, case.new_tokens),
        "limits": lambda: probe(arithmetic),
    }
    ways["ours"](), ways["theirs"]()  # warm up
    results = in_turns(ways, rounds, seconds)
    return figures(case, config, results)


def probe(dtype: str, seconds: float = 0.2) -> Device:
    """The machine's limits at this moment."""
    rate, _ = matmul_rate(dtype, CPU, seconds)
    bandwidth, _ = memory_bandwidths(CPU, seconds)["read"]
    return Device("now", {dtype: rate}, bandwidth, memory_bytes=1)


def figures(case: Case, config: ModelConfig, results: dict[str, list]) -> dict:
    """Ratios and shares from the rounds of one case."""
    ours, theirs, limits = results["ours"], results["theirs"], results["limits"]
    size, prompt, dtype = case.batch_size, case.prompt_len, case.dtype
    costs = {
        "prefill": prefill_cost(config, size, prompt, dtype),
        "decode": decode_cost(config, size, prompt + case.new_tokens // 2, dtype),
    }
    phases = {}
    for phase, cost in costs.items():
        took = [getattr(run, f"{phase}_s") for run in ours]
        least = [device.time(cost) for device in limits]
        phases[phase] = {
            "times as fast": asdict(Ratio.of([getattr(run, f"{phase}_s") for run in theirs], took)),
            "seconds": sorted(took)[len(took) // 2],
            "seconds at least": sorted(least)[len(least) // 2],
            "share of limit": asdict(Ratio.of(least, took)),
            "bound": limits[0].bound(cost),
        }
    equal = [torch.equal(a.ids, b.ids) for a, b in zip(ours, theirs, strict=True)]
    first = (ours[0].ids == theirs[0].ids).float().mean().item()
    same = {"runs with equal tokens": sum(equal) / len(equal), "equal tokens": first}
    return {**asdict(case), "rounds": len(ours), "phases": phases, **same}


def speed_rows(result: dict) -> list[dict]:
    """One case against the transformers library: a line a phase."""
    return [
        _named(result, phase)
        | {
            "ours, ms": found["seconds"] * 1e3,
            "times as fast": str(Ratio(**found["times as fast"])),
            "wanted": verdict(found["times as fast"]["median"], FASTER[result["dtype"]][phase]),
            "equal tokens": f"{result['equal tokens']:.0%}",
        }
        for phase, found in result["phases"].items()
    ]


def limit_rows(result: dict) -> list[dict]:
    """The same case against the machine: a line a phase."""
    return [
        _named(result, phase)
        | {
            "limit, ms": found["seconds at least"] * 1e3,
            "bound": found["bound"],
            "share of limit": str(Ratio(**found["share of limit"])),
            "wanted": verdict(found["share of limit"]["median"], SHARE.get((phase, result["batch_size"]))),
        }
        for phase, found in result["phases"].items()
    ]


def _named(result: dict, phase: str) -> dict:
    return {"format": result["dtype"], "batch": result["batch_size"], "phase": phase}


def verdict(reached: float, wanted: float | None) -> str:
    """The figure that was wanted, and whether it was reached."""
    return "-" if wanted is None else f"{wanted:.2f} {'yes' if reached >= wanted else 'NO'}"


def memory_row(case: Case) -> dict | None:
    """Peak memory of decode against what it may be."""
    found = decode_memory(case.batch_size, case.dtype, case.prompt_len, case.new_tokens)
    if found is None:
        return None
    allowed = found["weights"] + found["cache"] + ALLOWED
    return {
        "format": case.dtype,
        "batch": case.batch_size,
        "weights, MB": found["weights"] / MB,
        "cache, MB": found["cache"] / MB,
        "decode's peak, MB": found["peak"] / MB,
        "allowed, MB": allowed / MB,
        "within": "yes" if found["peak"] <= allowed else "NO",
    }


def main(
    arguments: list[str] | None = None,
    config: ModelConfig = opponent.MODEL,
    served: ModelConfig = serving.MODEL,
    sizes: serving.Sizes = serving.Sizes(),
    split: disaggregation.Sizes = disaggregation.Sizes(),
) -> int:
    """Runs the chosen parts, prints the tables, writes the file; returns the exit code."""
    options = _options(arguments)
    torch.set_grad_enabled(False)
    cases = [
        Case(dtype, batch_size, options.prompt, options.new)
        for dtype in options.dtype
        for batch_size in options.batch
    ]
    console.print(
        f"{device_name(CPU)}, torch {torch.__version__}, {config.num_parameters / 1e6:.0f}M weights"
    )
    record = about("cpu", device_name(CPU), "benchmarks.cpu") | {"threads": torch.get_num_threads()}
    parts = {
        "generate": lambda: {"cases": generation(cases, config, options)},
        "memory": lambda: {"memory": peak_memory(cases)},
        "serving": lambda: {"serving": engine(served, sizes)},
        "disaggregation": lambda: {"disaggregation": pools(served, split)},
        "simulator": lambda: {"simulator": simulated()},
    }
    try:
        for name in options.only:
            record |= parts[name]()
    except opponent.Missing as missing:
        console.print(f"[red]{missing}[/red]")
        return 1
    if options.json:
        write_json(options.json, record)
    return 0


def generation(cases: list[Case], config: ModelConfig, options: argparse.Namespace) -> list[dict]:
    """Every case of `generate`, and its tables."""
    results = []
    for case in cases:
        with console.status(f"{case.dtype}, batch {case.batch_size}"):
            results.append(compare(case, config, options.rounds, options.seconds))
    show_table("Against transformers", [row for result in results for row in speed_rows(result)])
    show_table("Against the limit", [row for result in results for row in limit_rows(result)], NOTES)
    return results


def peak_memory(cases: list[Case]) -> list[dict]:
    """Peak memory of every case, and its table."""
    rows = [row for case in cases if (row := memory_row(case))]
    show_table("Peak memory of decode", rows)
    return rows


def engine(config: ModelConfig, sizes: serving.Sizes) -> dict:
    """The serving engine's figures, and their tables."""
    found = serving.measure(config, sizes)
    serving_report.show(found)
    return found


def pools(config: ModelConfig, sizes: disaggregation.Sizes) -> dict:
    """The figures of disaggregated serving, and their tables."""
    found = disaggregation.measure(config, sizes)
    disaggregation_report.show(found)
    return found


def simulated() -> dict:
    """The simulator's errors, and their table."""
    found = simulator.measure(load_pretrained()[0])
    simulator.show(found)
    return found


NOTES = (
    "Medians over rounds, quartiles in brackets. Limit: the longer of arithmetic and reading,\n"
    "at the speeds that large products and reads reached in the same rounds."
)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.cpu", description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", nargs="+", default=list(FASTER), choices=list(FASTER))
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8], help="batch sizes")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of each prompt")
    parser.add_argument("--new", type=int, default=24, help="new tokens, 3 or more")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=60, help="a case stops after these, and 3 rounds")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="some of the parts")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
