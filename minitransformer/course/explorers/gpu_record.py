"""Shows what a record of a real GPU holds: its limits, and the rows of the items that a lesson asks for."""

from collections.abc import Sequence

from minitransformer.course.tables import number, table
from minitransformer.roofline import recorded_device

UNITS = {"seconds": "s", "s": "s", "bytes": "B", "flops": "FLOP/s"}  # by the last word of a column's name


def show_record(record: dict, items: Sequence[str] = ("linear", "attention", "phases")):
    """A table of the measured limits, and one for each of `items` that the record holds."""
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
        if rows:
            columns = list(rows[0])
            table(
                [[_cell(row.get(c), c) for c in columns] for row in rows],
                columns,
                caption=f"{name}, measured",
            )


def _cell(value, column: str) -> str:
    if isinstance(value, float):
        return number(value, UNITS.get(column.rpartition("_")[2], ""))
    return number(value) if isinstance(value, int) else str("" if value is None else value)
