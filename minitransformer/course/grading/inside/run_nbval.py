"""Runs nbval over the grading copies and reports on stdout what becomes of every cell, as it happens.

    python run_nbval.py '{"notebooks": [...], "work": ..., "cell_timeout": ..., ...}'

Stands alone (no import of this project: that would import torch). Each line of the report is a JSON object.
nbval waits for ever for a cell that prints without end and swallows interrupts, and for the whole limit
for a kernel that is dead; both are looked after here.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from queue import Empty

import nbval.kernel
import pytest

POLL = 0.25  # seconds between looks at a silent kernel
SWEEP = 20.0  # seconds for leftover processes to die
AFTER_TIMEOUT = 3.0  # seconds that an interrupted cell has to end
plain_get_message = nbval.kernel.RunningKernel.get_message


class KernelDied(RuntimeError):
    pass


class TooMuchOutput(RuntimeError):
    pass


class Watch:
    """A pytest plugin: the report, and the limits of the cell that runs now."""

    def __init__(self, spec: dict, report, server: subprocess.Popen):
        self.report, self.server = report, server
        self.cell_timeout, self.max_output = spec["cell_timeout"], spec["max_output"]
        self.alone = spec["namespaces"]
        self.begin_cell(60.0)

    def write(self, event: str, item=None, **more):
        where = {"notebook": item.path.stem, "cell": item.cell_num} if item else {}
        self.report.write(json.dumps({"event": event, **where, **more}) + "\n")

    def begin_cell(self, seconds: float):
        self.deadline = time.monotonic() + seconds + AFTER_TIMEOUT
        self.output = 0

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item):
        if item.parent.kernel is None:  # the first cell of a notebook starts one
            self.sweep()
            self.write("kernel", item)
        self.begin_cell(60.0)

    def sweep(self):
        """Kills what the notebook before has left running. Possible where no other processes are seen."""
        ours = {1, os.getpid(), self.server.pid}
        end = time.monotonic() + SWEEP
        # The dying count too: a kernel that starts beside them may find no room for its threads.
        while self.alone and time.monotonic() < end:
            others = {int(name) for name in os.listdir("/proc") if name.isdigit()} - ours
            if not others:
                return
            for pid in others:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self, item):
        self.write("cell", item)
        self.begin_cell(self.cell_timeout)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item, call):
        outcome = yield
        if call.when == "teardown":
            return
        report = outcome.get_result()
        if call.when == "call" or not report.passed:
            self.write("done", item, result=report.outcome, **self.why(item, call))

    def why(self, item, call) -> dict:
        """What a failed cell raised, as far as nbval knows."""
        if call.excinfo is None:
            return {}
        raised = next((o for o in item.test_outputs or [] if o.output_type == "error"), None)
        return {
            "error": type(call.excinfo.value).__name__,
            "timed_out": bool(getattr(item.parent, "timed_out", False)),
            "ename": str(raised.ename)[:200] if raised else "",
            "evalue": str(raised.evalue)[:2000] if raised else "",
            "traceback": "\n".join(raised.traceback)[-4000:] if raised else "",
        }

    def get_message(self, kernel, stream, timeout=None):
        """Like nbval's, but never past the cell's deadline, nor waiting for the dead."""
        end = min(self.deadline, time.monotonic() + (timeout or 60.0))
        while True:
            left = end - time.monotonic()
            if left <= 0:
                raise Empty
            try:
                message = plain_get_message(kernel, stream, timeout=min(POLL, left))
            except Empty:
                if not kernel.is_alive():
                    raise KernelDied("the kernel died") from None
                continue
            self.count(message, kernel)
            return message

    def count(self, message: dict, kernel):
        if message["msg_type"] in ("stream", "display_data", "execute_result", "error"):
            self.output += len(str(message["content"]))
        if self.output > self.max_output:
            kernel.stop()
            raise TooMuchOutput(f"more than {self.max_output:,} characters")


def main(spec: dict) -> int:
    here, work = Path(__file__).parent, Path(spec["work"])
    # The report has stdout to itself; what pytest prints goes the way of error messages.
    report = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for name in ("home", "tmp", "notebooks"):
        (work / name).mkdir(exist_ok=True)
    notebooks = [shutil.copy(path, work / "notebooks") for path in spec["notebooks"]]
    write_kernel_spec(work, here)
    server = [sys.executable, str(here / "warm.py"), "serve", str(work / "warm.sock")]
    with subprocess.Popen(server, stdin=subprocess.DEVNULL) as process:
        while not (work / "warm.sock").exists() and process.poll() is None:
            time.sleep(0.02)
        watch = Watch(spec, report, process)
        nbval.kernel.RunningKernel.get_message = lambda *args, **more: watch.get_message(*args, **more)
        try:
            return pytest.main(arguments(spec, notebooks), plugins=[watch])
        finally:
            process.kill()


def arguments(spec: dict, notebooks: list[str]) -> list[str]:
    work = spec["work"]
    Path(work, "pytest.ini").write_text("[pytest]\n")
    return [
        *("-c", f"{work}/pytest.ini", "--rootdir", work, "-p", "nbval.plugin", "-p", "no:cacheprovider"),
        *("-q", "--no-header", "--tb=no", "--color=no", "--nbval", "--nbval-kernel-name", "graded"),
        f"--nbval-cell-timeout={spec['cell_timeout']}",
        *notebooks,
    ]


def write_kernel_spec(work: Path, here: Path):
    """The kernel "graded", found through JUPYTER_PATH."""
    folder = work / "jupyter" / "kernels" / "graded"
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(here / "warm.py"), "kernel", f"{work}/warm.sock", "{connection_file}"]
    spec = {"argv": command, "display_name": "graded", "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(spec))
    os.environ["JUPYTER_PATH"] = str(work / "jupyter")


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
