"""The whole GPU round in one command, within 8 minutes: python -m benchmarks.gpu --out DIR

Runs every registered item, prints a table of each, and writes DIR/<device>.json, which the lessons read.
An item runs in a process of its own: one that crashes, hangs or leaves the GPU in a bad state is
reported, and the round goes on. The record is written anew after each item, so that a round that is cut
short leaves what it has.

    --device cpu --small   the same logic on a CPU, with sizes that mean nothing: a rehearsal
    --only NAME ...        some items; "limits" always runs, because the others stand beside it. What the
                           folder's record of this GPU holds of other items stays in it
    --list                 what items there are
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks import (  # noqa: F401  (they register items)
    disaggregation_item,
    items,
    kernels,
    kernels_attention,
    serving_item,
)
from benchmarks.registry import ITEMS, Bench
from benchmarks.report import about, console, file_name, show_table, write_json
from minitransformer.roofline import Device
from minitransformer.roofline.measure import device_name
from minitransformer.roofline.records import FOLDER, device_fields

WHOLE_ROUND = 450.0  # seconds, of the 480 allowed
LONGEST_ITEM = 150.0
PARTS = ("items", "failed", "seconds", "dates")  # of a record: something for each item
LAST = ("engine", "disaggregated")  # they take the longest: what they leave undone is theirs alone


def run_item(name: str, bench: Bench) -> dict:
    """One item in this process: its rows, why it failed (None: it did not), the limits, its seconds."""
    start, rows, failure = time.perf_counter(), [], None
    try:
        rows = ITEMS[name](bench)
        wrong = sum(row.get("ok") is False for row in rows)
        failure = f"{wrong} of {len(rows)} rows are wrong" if wrong else None
    except Exception as error:
        traceback.print_exc()
        failure = f"{type(error).__name__}: {error}"
    limits = bench.limits and device_fields(bench.limits)
    return {"rows": rows, "failure": failure, "limits": limits, "seconds": time.perf_counter() - start}


def run_item_apart(name: str, bench: Bench, seconds: float) -> dict:
    """One item in a process of its own, ended after `seconds`."""
    with tempfile.TemporaryDirectory() as folder:
        task, result = Path(folder) / "task.json", Path(folder) / "result.json"
        limits = bench.limits and device_fields(bench.limits)
        settings = {"item": name, "device": str(bench.device), "small": bench.small, "limits": limits}
        task.write_text(json.dumps(settings))
        command = [sys.executable, "-m", "benchmarks.gpu", "--task", str(task), str(result)]
        start, failure = time.perf_counter(), None
        try:
            code = subprocess.run(command, timeout=seconds, check=False).returncode
            failure = f"its process ended with code {code}"
        except subprocess.TimeoutExpired:
            failure = f"not done after {seconds:.0f} s"
        if result.exists():
            return json.loads(result.read_text())
    return {"rows": [], "failure": failure, "limits": limits, "seconds": time.perf_counter() - start}


def run_task(task: Path, result: Path):
    """The other side of `run_item_apart`."""
    settings = json.loads(task.read_text())
    limits = settings["limits"] and Device(**settings["limits"])
    bench = Bench(torch.device(settings["device"]), settings["small"], limits)
    unfinished = result.with_suffix(".part")
    unfinished.write_text(json.dumps(run_item(settings["item"], bench)))
    unfinished.replace(result)


def run_round(bench: Bench, out: Path, names: list[str], *, apart: bool = True) -> dict:
    """Runs the items one after the other and returns the record, which is also a file by then."""
    start = time.perf_counter()
    record = about(bench.device.type, device_name(bench.device), "benchmarks.gpu")
    record |= {"small": bench.small, "limits": None} | {part: {} for part in PARTS}
    path = out / file_name(record["device"])
    earlier = json.loads(path.read_text()) if path.exists() and set(names) != set(ITEMS) else None
    for name in names:
        left = WHOLE_ROUND - (time.perf_counter() - start)
        if left < 10:
            record["failed"][name] = "no time left in this round"
            continue
        if name != "limits" and bench.limits is None:
            record["failed"][name] = "the device's limits are not known"
            continue
        seconds = min(left, LONGEST_ITEM)
        found = run_item_apart(name, bench, seconds) if apart else run_item(name, bench)
        _add(record, name, found)
        if found["limits"]:
            bench.limits = Device(**found["limits"])
        say = found["failure"] or f"{len(found['rows'])} rows"
        console.print(f"{name}: {say} ({found['seconds']:.0f} s)")
        write_json(path, joined(earlier, record), quiet=True)
    write_json(path, joined(earlier, record))
    return record


def joined(earlier: dict | None, record: dict) -> dict:
    """A record of some items, and what an earlier one of the same GPU holds of others.

    Each item keeps the day on which it was measured, and its rows the floors that they were measured beside;
    the limits are those of the newer record. An item that brought nothing this time leaves what there was.
    Rehearsals are joined with nothing.
    """
    same = earlier is not None and earlier["device"] == record["device"]
    if not same or earlier["small"] or record["small"]:
        return record
    tried = record["items"].keys() | record["failed"].keys()
    fresh = {name for name in tried if record["items"].get(name) or not earlier["items"].get(name)}
    return record | {
        part: {name: value for name, value in earlier[part].items() if name not in fresh}
        | {name: value for name, value in record[part].items() if name in fresh}
        for part in PARTS
    }


def show(record: dict):
    """The tables, and what failed, last."""
    for name, rows in record["items"].items():
        if rows:
            show_table(name, rows)
    took = sum(record["seconds"].values())
    console.print(f"{record['device']}: {len(record['items'])} items in {took:.0f} s")
    for name, reason in record["failed"].items():
        console.print(f"[red]FAILED {name}[/red]: {reason}")


def main(arguments: list[str] | None = None) -> int:
    """The command line; exit code 0 only if every item succeeded."""
    options = _options(arguments)
    torch.set_grad_enabled(False)
    if options.task:
        run_task(*options.task)
        return 0
    if options.list:
        for name, function in ITEMS.items():
            console.print(f"{name:12} {function.__doc__.splitlines()[0]}")
        return 0
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        console.print("[red]no CUDA GPU that this PyTorch can use[/red]; --device cpu --small rehearses")
        return 1
    names = [n for n in ITEMS if n == "limits" or not options.only or n in options.only]
    names.sort(key=in_order)
    record = run_round(Bench(device, options.small), options.out, names, apart=not options.together)
    show(record)
    return 1 if record["failed"] else 0


def in_order(name: str) -> tuple:
    """Sorts items: the limits first, because the others stand beside them, and those of LAST last."""
    return name != "limits", LAST.index(name) if name in LAST else -1


def _add(record: dict, name: str, found: dict):
    record["items"][name] = found["rows"]
    record["dates"][name] = datetime.now(UTC).isoformat(timespec="seconds")
    record["seconds"][name] = round(found["seconds"], 1)
    if found["limits"]:
        record["limits"] = found["limits"]
    if found["failure"]:
        record["failed"][name] = found["failure"]


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the record")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny sizes, whose figures are of no use")
    parser.add_argument("--only", nargs="+", choices=list(ITEMS), metavar="NAME", help="only these items")
    parser.add_argument("--list", action="store_true", help="list the items")
    parser.add_argument("--together", action="store_true", help="all items in one process, to debug one")
    parser.add_argument("--task", nargs=2, type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
