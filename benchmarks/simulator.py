"""The simulator against the engine that runs: the same requests, at the same times, on the same machine.

    python -m benchmarks.simulator [--seconds 60] [--json FILE]

The bundled model serves loads of several kinds. Before and after each of them, steps of chosen shapes are
timed, and what the simulator knows of the machine is fitted to those: its limits, measured at the
beginning, and the four numbers of `simulate.calibrate`. Then it is asked when every token of the load
should have come. No figure of a load is fitted to any load. The same is done with a disaggregated pool
(simulator_pool.py), which takes some minutes more.

All runs in rounds. A round's error is that of its own calibration, so a machine whose speed drifts from
one minute to the next is compared with itself; the figures are medians over the rounds.
"""

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.report import about, console, show_table, write_json
from benchmarks.simulator_loads import KINDS, Kind, as_load, asks_of, medians, serve
from benchmarks.simulator_pool import POOL_KINDS, PoolKind, pool_rounds
from benchmarks.simulator_steps import timed_steps, typical, wake_seconds
from minitransformer import Transformer, load_pretrained
from minitransformer.roofline import Device
from minitransformer.roofline.measure import device_name, matmul_rate, memory_bandwidths
from minitransformer.serving import LLM
from minitransformer.simulate import Replica, colocated, simulate
from minitransformer.simulate.calibrate import fit_steps

CPU = torch.device("cpu")
WANTED = 0.15  # error of a median


def limits(seconds: float = 0.5) -> Device:
    """What this machine reaches at most, as far as the simulator is told."""
    rate, _ = matmul_rate("fp32", CPU, seconds)
    bandwidth, _ = memory_bandwidths(CPU, seconds)["read"]
    return Device(device_name(CPU), {"fp32": rate}, bandwidth, memory_bytes=1e9)


def one_round(
    model: Transformer, device: Device, kinds: Sequence[Kind], seconds: float, seed: int
) -> list[dict]:
    """Each load once, between two calibrations: the medians that were measured, and those simulated."""
    found, before = [], timed_steps(model, seed)
    for kind in kinds:
        machine = Replica(model.config, device, dtype="fp32", **kind.engine())
        rough = replace(machine, efficiency=fit_steps(typical(before), machine))
        asks = asks_of(kind, model, rough, seconds, seed)
        trace = serve(LLM(model, None, **kind.engine()), asks)
        after = timed_steps(model, seed)
        fitted = replace(machine, efficiency=fit_steps(typical(before, after), machine))
        waking = wake_seconds(model, fitted, seed)
        fitted = replace(fitted, efficiency=replace(fitted.efficiency, wake_s=waking))
        report = simulate(as_load(asks, kind.shared), colocated(fitted))
        found.append(medians(kind.name, kind.scheduling, trace, report))
        before = after
    return found


def measure(
    model: Transformer,
    kinds: Sequence[Kind] = KINDS,
    rounds: int = 3,
    seconds: float = 60.0,
    *,
    pool_kinds: Sequence[PoolKind] = POOL_KINDS,
    pool_requests: int = 24,
    threads: int = 1,
    seed: int = 0,
) -> dict:
    """All rounds of the engine, in about so many seconds, those of the pool, and their summary.

    pool_requests   of each load of `pool_kinds`
    threads         of PyTorch: so small a model needs no more, and one alone is disturbed least
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        device = limits(0.005 * seconds)
        timed_steps(model, seed)  # warm up
        each = seconds / (2.5 * rounds * len(kinds))  # the rest is for the calibrations
        results = []
        for number in range(rounds):
            with console.status(f"simulator: round {number + 1} of {rounds}"):
                results.append(one_round(model, device, kinds, each, seed + number))
        with console.status("simulator: a disaggregated pool"):
            pool_results = pool_rounds(device, pool_kinds, pool_requests, rounds, seed)
    finally:
        torch.set_num_threads(before)
    loads = summary(results) + summary(pool_results)
    return {"threads": threads, "rounds": results, "pool rounds": pool_results, "loads": loads}


def summary(rounds: Sequence[Sequence[dict]]) -> list[dict]:
    """A row for each load: medians over the rounds, and the median of the rounds' errors."""
    rows = []
    for runs in zip(*rounds, strict=True):
        row = {name: runs[0][name] for name in ("load", "scheduling", "requests")}
        for name in ("TTFT", "TPOT"):
            measured, simulated = (statistics.median(run[name][i] for run in runs) for i in (0, 1))
            error = statistics.median(run[name][1] / run[name][0] - 1 for run in runs)
            row |= {f"{name}, ms": 1e3 * measured, f"{name} sim.": 1e3 * simulated, f"{name} error": error}
        rows.append(row | {"within": abs(row["TTFT error"]) <= WANTED and abs(row["TPOT error"]) <= WANTED})
    return rows


def show(found: dict):
    """The table."""
    rows = []
    for row in found["loads"]:
        shown = {name: f"{value:+.0%}" if name.endswith("error") else value for name, value in row.items()}
        rows.append(shown | {"within": "yes" if row["within"] else "NO"})
    good = sum(row["within"] for row in found["loads"])
    show_table(
        "The simulator against the engine", rows, f"{good} of {len(rows)} loads within {WANTED:.0%}. {NOTES}"
    )


NOTES = (
    "Medians over requests, then over rounds. The simulator knows\nthe machine's limits and steps of other "
    "shapes, timed right before and after each load.\n1P1D: a prefill and a decode worker, each a process."
)


def main(arguments: list[str] | None = None) -> int:
    """The command line: measures, prints the table, writes the file."""
    parser = argparse.ArgumentParser(prog="benchmarks.simulator", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60, help="of the engine's rounds together, about")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(arguments)
    torch.set_grad_enabled(False)
    model, _ = load_pretrained()
    found = measure(model, rounds=options.rounds, seconds=options.seconds, threads=options.threads)
    show(found)
    if options.json:
        record = about("cpu", device_name(CPU), "benchmarks.simulator")
        write_json(options.json, record | {"simulator": found})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
