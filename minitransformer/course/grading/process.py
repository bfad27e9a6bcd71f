"""One process of nbval over grading copies, shut in and watched from outside."""

import json
import subprocess
import tempfile
import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from minitransformer.course.grading.sandbox import Box, memory_of, own_memory_of, processes_of

MAX_REPORT = 16 * 2**20  # bytes of nbval's report that are read


@dataclass(frozen=True)
class Limits:
    """What a learner's code may use. `grace_seconds` is what an interrupted cell has to end."""

    cell_seconds: float = 20
    memory_mb: float = 4096
    output_chars: int = 2_000_000
    processes: int = 200
    start_seconds: float = 120  # for a kernel to start, on a machine under load
    grace_seconds: float = 15


class NbvalRun:
    """One process of nbval over some notebooks, watched from outside."""

    def __init__(self, box: Box, notebooks: list[Path], limits: Limits):
        self.box, self.limits = box, limits
        self.events: dict[str, list[dict]] = defaultdict(list)
        self.stopped, self.stopped_for_time = "", False
        self.last_words = ""
        self.phase, self.since = "start", time.monotonic()
        self.overall = limits.start_seconds + len(notebooks) * (
            limits.start_seconds + 10 * limits.cell_seconds
        )
        self.spec = {
            "notebooks": [str(p) for p in notebooks],
            "cell_timeout": limits.cell_seconds + 1,  # the judge's own limit comes first
            "max_output": limits.output_chars,
        }

    def watch(self, tell):
        """Runs to the end, or until a limit is passed; `events` then holds what was reported."""
        with tempfile.TemporaryFile() as words:
            process = self.box.start("run_nbval.py", self.spec, stdout=subprocess.PIPE, stderr=words)
            reader = threading.Thread(target=self._read, args=(process.stdout, tell), daemon=True)
            reader.start()
            begun = time.monotonic()
            try:
                while process.poll() is None and not self.stopped:
                    time.sleep(0.2)
                    self._look(process, time.monotonic() - begun)
            finally:
                self.box.stop(process)
                reader.join(5)
                process.stdout.close()
            words.seek(0)
            self.last_words = words.read(2**20).decode(errors="replace")[-300:]

    def _look(self, process: subprocess.Popen, seconds: float):
        """Stops the process, by setting `stopped`, where it has passed a limit."""
        allowed = {
            "cell": self.limits.cell_seconds + self.limits.grace_seconds,
        }.get(self.phase, self.limits.start_seconds)
        if time.monotonic() - self.since > allowed or seconds > self.overall:
            self.stopped, self.stopped_for_time = "A cell did not end and could not be interrupted.", True
            return
        children, memory = processes_of(process), 2 * self.limits.memory_mb * 2**20
        if len(children) > self.limits.processes:
            self.stopped = f"More than {self.limits.processes} processes were started."
        elif memory_of(children) > memory and own_memory_of(children) > memory:
            self.stopped = f"All processes together used more than {2 * self.limits.memory_mb:g} MB."

    def _read(self, stream, tell):
        size = 0
        for line in stream:
            size += len(line)
            if size > MAX_REPORT:
                return  # the pipe fills, the process stalls and is stopped
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if not isinstance(event, dict) or not isinstance(event.get("notebook"), str):
                continue
            self.phase, self.since = event.get("event"), time.monotonic()
            self.events[event["notebook"]].append(event | {"event": str(event.get("event"))})
            tell(event)
