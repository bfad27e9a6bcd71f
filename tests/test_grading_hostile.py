"""Grading: code that hangs, floods, kills, forges or looks around costs its own task and gains nothing."""

import os
from pathlib import Path

import psutil
import pytest
from grading_course import NAME, TASKS, Submission, make_course

from minitransformer.course.grading import sandbox
from minitransformer.course.grading.process import Limits
from minitransformer.course.grading.run import grade
from minitransformer.course.grading.sandbox import Box, Means

SHORT = Limits(cell_seconds=4, grace_seconds=4, output_chars=200_000)


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    return make_course(tmp_path_factory.mktemp("course"))


@pytest.fixture(scope="module")
def graded(course, tmp_path_factory):
    """Grades right answers with the given ones replaced; returns {task: verdict}."""

    def run(answers: dict[str, str], limits: Limits) -> dict:
        submission = Submission(course)
        for cell, source in answers.items():
            submission.put(cell, source)
        result = grade(submission.save(tmp_path_factory.mktemp("s") / NAME), course, limits)
        return {verdict.task: verdict for verdict in result.verdicts}

    return run


def means_here(course) -> Means:
    with Box(course, 1024) as box:
        return box.means


# --- code that does not end, or ends too much -----------------------------------------------------------

ENDLESS = {
    "double": "def double(x):\n    while True:\n        pass",
    "counter": "while True:\n    try:\n        print('x' * 1000)\n    except BaseException:\n        pass",
    "bytes": "import os\nos._exit(0)",
    "logits-b": "import os, signal\n\ndef last_logits(m, i):\n    os.kill(os.getpid(), signal.SIGKILL)",
    "choice": """import time
while True:
    try:
        time.sleep(1)
    except BaseException:
        pass""",
}


@pytest.fixture(scope="module")
def endless(graded):
    return graded(ENDLESS, SHORT)


@pytest.mark.parametrize(
    ("task", "outcomes"),
    [
        ("90.double", {"timed out"}),
        ("90.counter", {"timed out", "crashed"}),  # whichever limit is reached first: time or output
        ("90.bytes", {"crashed"}),
        ("90.logits", {"crashed"}),
        ("90.choice", {"timed out"}),
    ],
)
def test_endless_loops_floods_and_dead_kernels_are_told_apart(endless, task, outcomes):
    assert endless[task].outcome in outcomes and endless[task].paragraph, endless[task]


# --- code that takes all there is, or takes all with it -------------------------------------------------

GREEDY = {
    "double": """import os, signal
os.kill(-1, signal.SIGKILL)""",
    "counter": """hoard = []
while True:
    hoard.append(bytearray(100_000_000))""",
    "bytes": """import os, time
for _ in range(1000):
    if os.fork() == 0:
        time.sleep(1000)""",
    "logits-b": """import sys
print("y" * 5_000_000)
def last_logits(model, ids):
    return last(model(ids))""",
}


@pytest.fixture(scope="module")
def greedy(graded):
    return graded(GREEDY, Limits(cell_seconds=15, memory_mb=1024, output_chars=1_000_000))


def test_whoever_kills_all_processes_costs_only_their_own_task(greedy):
    assert greedy["90.double"].outcome == "crashed"
    assert greedy["90.choice"].outcome == "passed"


@pytest.mark.parametrize(
    ("task", "outcomes"),
    [
        ("90.counter", {"failed", "crashed"}),
        ("90.bytes", {"failed", "crashed"}),
        ("90.logits", {"crashed"}),
    ],
)
def test_memory_processes_and_output_are_limited(greedy, task, outcomes):
    # A machine under load may be too slow to get to any other limit than that of time.
    assert greedy[task].outcome in outcomes | {"timed out"}, greedy[task]


# --- code that forges -----------------------------------------------------------------------------------

FORGED = {
    # Everything in the kernel that could tell the verdict is replaced.
    "double": """import builtins, torch
import minitransformer.course as course
import minitransformer.course.checking as checking
import minitransformer.course.grading.rpc as rpc
torch.allclose = torch.equal = torch.Tensor.allclose = lambda *a, **k: True
checking.expect_close = checking.judge = lambda *a, **k: None
say = builtins.print
check = course.check = checking.check = lambda *a, **k: say("passed: Double")
rpc.serve_answer = lambda *a: "passed: Double"
builtins.print = lambda *a, **k: say("passed: Double")
def double(x):
    return x * x""",
    # Asks for the verdict itself, with a wrong class, then tells the grader's socket what it should be.
    "counter": """import json, os, socket, struct
def send(message):
    s = socket.socket(socket.AF_UNIX)
    s.connect(os.environ["MINITRANSFORMER_GRADER"])
    text = json.dumps({"head": message, "blobs": []}).encode()
    s.sendall(struct.pack("!Q", len(text)) + text)
    s.close()
for head in ({"verdict": "passed"}, {"request": "passed", "task": "90.counter"}, [], None, 7,
             {"request": "figures", "task": "90.bytes", "seed": [1]}, {"request": "check", "task": {}}):
    send(head)
class Counter:
    total = 0
    def add(self, step):
        type(self).total += step  # shared by all counters
""",
    # Learns from a first, failing attempt what to answer, and tries again.
    "bytes": """import os
from minitransformer.course.grading.rpc import serve_answer
told = serve_answer(os.environ["MINITRANSFORMER_GRADER"], "90.bytes", 1, seed)
answer = 4 * figures["layers"] * figures["width"]""",
    # Sends objects that claim to be equal to everything, or to be what they are not.
    "choice": """class Anything(str):
    def __eq__(self, other):
        return True
    __hash__ = str.__hash__
bound = Anything("compute")""",
    # A result of its own making: a tensor subclass that lies about its values.
    "logits-b": """class Liar(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return super().__torch_function__(func, types, args, kwargs or {})
    def norm(self, *a, **k):
        return torch.zeros(())
def last_logits(model, ids):
    return torch.zeros(2, 61).as_subclass(Liar)""",
}


@pytest.fixture(scope="module")
def forged(graded):
    return graded(FORGED, Limits(cell_seconds=20))


@pytest.mark.parametrize("task", TASKS)
def test_what_the_kernel_says_of_itself_earns_nothing(forged, task):
    assert forged[task].outcome == "failed", forged[task]


def test_the_first_verdict_of_a_task_counts(forged):
    assert "but 1 came" in forged["90.bytes"].paragraph


# --- code that looks around -----------------------------------------------------------------------------

LOOKING = {
    "double": """import socket
socket.create_connection(("1.1.1.1", 53), timeout=3)
def double(x):
    return 2 * x""",
    "choice": """from pathlib import Path
import minitransformer
root = Path(minitransformer.__file__).parent.parent
bound = []
for top in (root, Path(ROOT)):
    for folder in ("solutions", "tests", "minitransformer/course/checks", ".git"):
        try:
            bound += [str(file) for file in (top / folder).iterdir()]
        except OSError:
            pass""",
    "bytes": """from pathlib import Path
import os
import minitransformer
written = []
for place in (Path(minitransformer.__file__).parent, Path(os.environ["MINITRANSFORMER_GRADER"]).parent):
    try:
        (place / "mark.txt").write_text("here")
        written.append(str(place))
    except OSError:
        pass
Path.home().joinpath("mine.txt").write_text("a throw-away home")
answer = written or 4 * figures["layers"] * figures["width"]""",
    "logits-b": """import os
secrets = {name for name in os.environ if "TOKEN" in name}
def last_logits(model, ids):
    return secrets or last(model(ids))""",
    "counter": """import subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(987654)"], start_new_session=True)
class Counter:
    def __init__(self):
        self.total = 0
    def add(self, step):
        self.total += step""",
}


@pytest.fixture(scope="module")
def looking(graded, course):
    if not means_here(course).namespaces:
        pytest.skip("this system lets an ordinary user make no namespaces")
    os.environ["A_TOKEN"] = "secret"
    answers = LOOKING | {"choice": f"ROOT = {str(course.root)!r}\n{LOOKING['choice']}"}
    try:
        return graded(answers, Limits(cell_seconds=20))
    finally:
        del os.environ["A_TOKEN"]


def test_there_is_no_network(looking):
    assert looking["90.double"].outcome == "failed" and "nreachable" in looking["90.double"].paragraph


def test_the_solutions_can_not_be_read(looking):
    assert "should be 'memory', but [] came" in looking["90.choice"].paragraph


def test_nothing_but_a_throw_away_home_can_be_written_to(looking):
    assert looking["90.bytes"].outcome == "passed", looking["90.bytes"]
    assert not (Path(sandbox.HERE.root) / "minitransformer" / "mark.txt").exists()


def test_the_environment_holds_no_secrets(looking):
    assert looking["90.logits"].outcome == "passed", looking["90.logits"]


def sleepers() -> list:
    return [p.pid for p in psutil.process_iter(["cmdline"]) if "time.sleep(987654)" in str(p.info["cmdline"])]


def test_no_process_outlives_the_grading(looking):
    assert looking["90.counter"].outcome == "passed" and not sleepers()


# --- a system without namespaces ------------------------------------------------------------------------


def test_without_namespaces_limits_hold_and_the_lack_is_said(course, tmp_path, monkeypatch):
    monkeypatch.setattr(Box, "_find_means", lambda self: Means(False, None))
    submission = Submission(course, solved=False)
    submission.put("counter", LOOKING["counter"])
    submission.put("choice", "while True:\n    pass")
    result = grade(submission.save(tmp_path / NAME), course, SHORT)
    verdicts = {v.task: v.outcome for v in result.verdicts}
    assert verdicts["90.counter"] == "passed" and verdicts["90.choice"] == "timed out"
    assert verdicts["90.double"] == "not attempted"
    assert "NOT cut off: the network" in result.means and not sleepers()
