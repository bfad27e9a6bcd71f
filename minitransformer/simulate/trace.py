"""Loads that somebody has had: read from a CSV file, and replayed at any speed."""

import csv
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from minitransformer.simulate.checks import require_number, require_whole
from minitransformer.simulate.workload import Load


@dataclass(frozen=True)
class Trace:
    """Requests that came somewhere, to be replayed: rows of a CSV file (`Trace.read`).

    rows    (arrival_s, prompt_tokens, output_tokens, session) in order of arrival; session "" for none
    speed   how many times as fast as they came
    """

    rows: tuple[tuple[float, int, int, str], ...]
    speed: float = 1.0

    COLUMNS = ("arrival_s", "prompt_tokens", "output_tokens")

    def __post_init__(self):
        require_number("speed", self.speed, above=0)
        if not self.rows:
            raise ValueError("a trace needs at least one request")

    @classmethod
    def read(cls, path: str | Path) -> "Trace":
        """Reads a file with columns arrival_s, prompt_tokens, output_tokens and perhaps session.

        Raises ValueError that names the line of a row that can't be.
        """
        with open(path, newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in cls.COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise ValueError(
                    f"{path}: the first line must name the columns; it lacks {', '.join(missing)}"
                )
            rows = [_row(path, reader.line_num, row) for row in reader]
        if not rows:
            raise ValueError(f"{path}: no request below the line of column names")
        return cls(tuple(sorted(rows, key=lambda row: row[0])))

    @property
    def count(self) -> int:
        return len(self.rows)

    @property
    def rate(self) -> float | None:
        """Requests a second between the first and the last; None where all came at once."""
        seconds = (self.rows[-1][0] - self.rows[0][0]) / self.speed
        return (len(self.rows) - 1) / seconds if seconds > 0 else None

    def at_rate(self, rate: float) -> "Trace":
        """The same requests with all gaps stretched alike. Raises ValueError where all came at once."""
        require_number("rate", rate, above=0)
        if self.rate is None:
            raise ValueError("all requests of this trace came at once: it has no rate to change")
        return replace(self, speed=self.speed * rate / self.rate)

    def draw(self, seed: int = 0) -> Load:
        """The rows, whatever the seed."""
        time_s, prompt, output, names = zip(*self.rows, strict=True)
        numbers = {name: i for i, name in enumerate(dict.fromkeys(name for name in names if name))}
        return Load(
            time_s=(np.array(time_s) - time_s[0]) / self.speed,
            after=np.full(self.count, -1),
            prompt_tokens=np.array(prompt),
            output_tokens=np.array(output),
            session=np.array([numbers.get(name, -1) for name in names]),
        )


def _row(path: str | Path, line: int, row: dict) -> tuple[float, int, int, str]:
    """One row of a trace file, checked."""
    try:
        arrival = float(row["arrival_s"])
        require_number("arrival_s", arrival)
        tokens = [int(row[name]) for name in ("prompt_tokens", "output_tokens")]
        require_whole("prompt_tokens", tokens[0])
        require_whole("output_tokens", tokens[1])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}, line {line}: {error}") from None
    return arrival, *tokens, (row.get("session") or "").strip()
