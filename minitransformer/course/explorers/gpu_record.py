"""Shows what a record of a real GPU holds: its limits, and the rows of the items that a lesson asks for."""

from collections.abc import Sequence

from minitransformer.course.predictions import note
from minitransformer.course.tables import number, table
from minitransformer.roofline import recorded_device

ALIKE = ("target", "reached", "ok", "low", "high", "model")  # columns for whoever made the record
# By the last word of a column's name.
UNITS = {"seconds": "s", "s": "s", "bytes": "B", "flops": "FLOP/s", "bandwidth": "B/s"}


def show_record(record: dict, items: Sequence[str] = ("linear", "attention", "phases")):
    """A table of the measured limits, and one for each of `items`; where there is none, why not."""
    device = recorded_device(record)
    limits = [
        *([f"peak, {dtype}", number(float(peak), "FLOP/s")] for dtype, peak in device.peak_flops.items()),
        ["reading memory", number(float(device.bandwidth), "B/s")],
        ["ridge, FLOPs a byte", device.ridge()],
    ]
    made = f"{record['device']}, measured {record['date']} by `{record['command']}`"
    table(limits, ["limit", "measured"], caption=made)
    for name in items:
        rows = record["items"].get(name, [])
        if not rows:
            note(f"No {name} in this record: {record['failed'].get(name, 'it was not asked for')}.")
            continue
        columns = [c for c in rows[0] if c not in ALIKE]
        cells = [[_cell(row.get(c), c) for c in columns] for row in rows]
        table(
            cells,
            columns,
            caption=f"{name}, measured {record.get('dates', {}).get(name, record['date'])[:10]}",
        )


def _cell(value, column: str) -> str:
    if isinstance(value, float):
        return number(value, UNITS.get(column.rpartition("_")[2], ""))
    if isinstance(value, int) and column == "bytes":
        return number(float(value), "B")
    return number(value) if isinstance(value, int) else str("" if value is None else value)
