"""What real GPUs gave: the files that `python -m benchmarks.gpu` writes and lessons read.

A record is a dict as the benchmark wrote it: `device`, `date`, `command`, `versions`, `limits` (the
fields of a measured Device), `items` (a list of rows for each item), `dates` (when each was measured) and
`failed` (a reason for each item that gave none, or wrong rows). Nothing here is ever typed in by hand.
"""

import json
from dataclasses import asdict, fields
from pathlib import Path

from minitransformer.roofline.devices import Device

FOLDER = Path(__file__).parents[2] / "benchmarks" / "records"
NO_RECORD = (
    "No record of a real GPU yet. On a machine with a CUDA GPU, `python -m benchmarks.gpu --out "
    "benchmarks/records` takes at most 8 minutes and writes one."
)


def load_records(folder: Path | str = FOLDER) -> dict[str, dict]:
    """All records of GPUs in the folder, by device name. Raises ValueError for a file that is no record."""
    records = {}
    for path in sorted(Path(folder).glob("*.json")):
        record = _read(path)
        if record["kind"] == "cuda":
            records[record["device"]] = record
    return records


def load_record(device: str | None = None, folder: Path | str = FOLDER) -> dict | None:
    """The record of a device whose name contains `device` (None: the newest); None where there is none.

    A lesson that gets None says `NO_RECORD`.
    """
    records = load_records(folder).values()
    matching = [r for r in records if device is None or device.lower() in r["device"].lower()]
    return max(matching, key=lambda record: record["date"], default=None)


def recorded_device(record: dict) -> Device:
    """The measured limits in a record, as the Device they were written from."""
    return Device(**{f.name: record["limits"][f.name] for f in fields(Device) if f.name in record["limits"]})


def device_fields(device: Device) -> dict:
    """The other way: what a record keeps of a device."""
    return asdict(device)


def _read(path: Path) -> dict:
    needed = {"kind", "device", "date", "command", "versions", "items", "failed"}
    try:
        record = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    missing = needed - set(record) if isinstance(record, dict) else needed
    if missing:
        raise ValueError(f"{path} is no benchmark record: it lacks {', '.join(sorted(missing))}")
    return record
