"""What every benchmark prints and writes: tables, and files that say where their figures come from."""

import json
import platform
import re
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console
from rich.table import Table

console = Console() if Console().is_terminal else Console(width=120)  # a file has no edge to wrap at
PACKAGES = ("torch", "triton", "transformers", "numpy")


def show_table(title: str, rows: list[dict], notes: str = ""):
    """Prints rows of equal keys; figures to the right, names to the left."""
    table = Table(title=title, title_justify="left", caption=notes or None, caption_justify="left")
    for name in rows[0] if rows else ():
        is_text = all(isinstance(row[name], str) and not row[name][:1].isdigit() for row in rows)
        table.add_column(name, justify="left" if is_text else "right")
    for row in rows:
        table.add_row(*map(_cell, row.values()))
    console.print(table)


def about(kind: str, device: str, module: str) -> dict:
    """Device, date, command and versions: without them a figure is no figure."""
    return {
        "kind": kind,
        "device": device,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python -m", module, *sys.argv[1:]]),
        "versions": {"python": platform.python_version()} | {p: v for p in PACKAGES if (v := _version(p))},
        "platform": f"{platform.system()} {platform.machine()}",
    }


def write_json(path: Path, content: dict, *, quiet: bool = False):
    """Writes the file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(content, indent=1) + "\n")
    unfinished.replace(path)
    if not quiet:
        console.print(f"written: {path}")


def file_name(device: str) -> str:
    """nvidia-h100-80gb-hbm3.json for NVIDIA H100 80GB HBM3."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") + ".json"


def _cell(value) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
