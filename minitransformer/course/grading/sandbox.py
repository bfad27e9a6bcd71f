"""Starting other people's code shut in, as well as this system can, and saying how well that is."""

import json
import os
import pwd
import shutil
import site
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import psutil

from minitransformer.course.checking import SOCKET_VARIABLE
from minitransformer.course.course_files import HERE, Course

INSIDE = Path(__file__).parent / "inside"
NOBODY = 65534
PROCESSES = 200  # threads count too; a kernel has about twenty
PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ")  # no tokens, keys or proxies


@dataclass(frozen=True)
class Means:
    """What this system offers: namespaces, and for root a user without rights to become (`drop_to`)."""

    namespaces: bool
    drop_to: int | None

    def __str__(self) -> str:
        limits = "limits on time, memory, processes and output, a throw-away home"
        if self.namespaces:
            return f"{limits}; no network, all else read-only, reference solutions out of reach"
        return (
            f"{limits}; NOT cut off: the network, other files, the reference solutions "
            "(this system lets an ordinary user make no namespaces)"
        )


class Box:
    """A temporary folder for one grading: `notebooks` go in, the judge's socket is there, `work` is theirs.

    A context manager; the folder is gone afterwards.
    """

    def __init__(self, course: Course, memory_mb: float):
        # Short, because the path of a socket may hold about a hundred characters.
        base = "/tmp" if os.access("/tmp", os.W_OK) else None
        self.path = Path(tempfile.mkdtemp(prefix="grade-", dir=base)).resolve()
        self.course, self.memory_mb = course, memory_mb
        self.socket = self.path / "judge.sock"
        self.work, self.notebooks = self.path / "work", self.path / "notebooks"
        self.work.mkdir()
        self.notebooks.mkdir()
        self.means = Means(False, None)

    def __enter__(self) -> "Box":
        try:
            self.means = self._find_means()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc):
        shutil.rmtree(self.path, ignore_errors=True)

    def start(self, script: str, spec: dict, *, stdout, stderr) -> subprocess.Popen:
        """Starts a script of inside/ in the box, with `spec` as its argument."""
        self._hand_over(self.means.drop_to)
        spec = spec | {"work": str(self.work), "namespaces": self.means.namespaces}
        command = [sys.executable, str(INSIDE / script), json.dumps(spec)]
        return self._start(self.means, command, stdout=stdout, stderr=stderr)

    def stop(self, process: subprocess.Popen):
        """Ends it and all that it started."""
        if self.means.namespaces:
            process.kill()  # its namespace dies with it
        else:
            process.terminate()  # jail.py then kills what is left
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            for left in [*processes_of(process), process]:
                left.kill()
            process.wait()

    def _find_means(self) -> Means:
        """Tries the best first: shut in, and as nobody where we are root."""
        users = [NOBODY, None] if os.getuid() == 0 else [None]
        for means in [Means(True, user) for user in users] + [Means(False, user) for user in users]:
            self._hand_over(means.drop_to)
            needed = [str(HERE.root / "minitransformer" / "__init__.py"), str(self.path)]
            test = f"import os, pytest; assert all(os.access(p, os.R_OK) for p in {needed})"
            with self._start(means, [sys.executable, "-c", test], stderr=subprocess.DEVNULL) as process:
                if process.wait(60) == 0:
                    return means
        return Means(False, None)

    def _start(self, means: Means, command: list[str], **streams) -> subprocess.Popen:
        spec = {
            "command": command,
            "env": self._environment(),
            "work": str(self.work),
            "namespaces": means.namespaces,
            "drop_to": means.drop_to,
            "limits": self._limits(means),
            "hide": self._hidden(),
            "homes": homes(),
            "keep": self._kept(),
        }
        return subprocess.Popen(
            [sys.executable, "-I", "-S", str(INSIDE / "jail.py"), json.dumps(spec)],
            stdin=subprocess.DEVNULL,
            env=spec["env"],
            cwd="/",
            start_new_session=True,
            **streams,
        )

    def _hand_over(self, user: int | None):
        """Gives the box to the user who is to work in it."""
        if user is not None:
            for path in (self.path, self.work, self.notebooks, *self.path.iterdir()):
                os.chown(path, user, -1)

    def _environment(self) -> dict[str, str]:
        work = str(self.work)
        passed_on = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        return passed_on | {
            SOCKET_VARIABLE: str(self.socket),
            "HOME": f"{work}/home",
            "TMPDIR": f"{work}/tmp",
            "USER": "learner",
            "LOGNAME": "learner",
            "PYTHONPATH": str(HERE.root),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "OMP_NUM_THREADS": "1",  # checks work on small tensors, where more threads only wait
            "HF_HUB_OFFLINE": "1",
        }

    def _limits(self, means: Means) -> dict[str, int]:
        # Older kernels count all processes of the user, so what already runs is added.
        running = sum(_threads(p) for p in psutil.process_iter() if _uid(p) == (means.drop_to or os.getuid()))
        return {
            "RLIMIT_DATA": int(self.memory_mb * 2**20),
            "RLIMIT_NPROC": running + PROCESSES,
            "RLIMIT_FSIZE": 64 * 2**20,
            "RLIMIT_NOFILE": 1024,
            "RLIMIT_CORE": 0,
        }

    def _hidden(self) -> list[str]:
        """The reference solutions in every form: notebooks, checks, tests, and git's memory of them."""
        folders = []
        for course in {HERE, self.course}:
            folders += [course.solutions, course.checks, course.root / "tests", course.root / ".git"]
        return [str(folder) for folder in folders]

    def _kept(self) -> list[str]:
        """What Python and the course need of folders that are covered."""
        paths = [self.path, HERE.root, self.course.root, sys.prefix, sys.base_prefix]
        paths += [*site.getsitepackages(), *(p for p in sys.path if p.endswith("-packages"))]
        return sorted({str(Path(p).resolve()) for p in paths if p and Path(p).is_dir()} - {"/"})


def homes() -> list[str]:
    """The home folders to cover: of the user and of whom the environment names, but no system folder."""
    named = {Path(pwd.getpwuid(os.getuid()).pw_dir), Path.home()}
    return sorted(str(p.resolve()) for p in named if p.is_dir() and len(p.resolve().parts) > 1)


def processes_of(process: subprocess.Popen) -> list[psutil.Process]:
    """All that it has started, directly or not."""
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def memory_of(processes: list[psutil.Process]) -> int:
    """Bytes of main memory that they occupy; what forks share is counted each time."""
    return sum(_ask(p, lambda p: p.memory_info().rss) for p in processes)


def own_memory_of(processes: list[psutil.Process]) -> int:
    """The same, what is shared counted once. Takes longer."""
    return sum(_ask(p, lambda p: p.memory_full_info().pss) for p in processes)


def _uid(process: psutil.Process) -> int:
    return _ask(process, lambda p: p.uids().real, -1)


def _threads(process: psutil.Process) -> int:
    return _ask(process, lambda p: p.num_threads())


def _ask(process: psutil.Process, question, otherwise: int = 0) -> int:
    try:
        return question(process)
    except psutil.Error:
        return otherwise
