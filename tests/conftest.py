"""How the suite runs and reports: what could not be checked here is said so, never counted as passed."""

import os
from collections import Counter

import pytest
import torch

# Triton settles while it is imported whether kernels are compiled or interpreted. Without a GPU it has to
# be the interpreter, also where a test imports Triton before the package does.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Under pytest-xdist each worker has one core; kernels and servers that tests start inherit it. More
# threads than cores would make every one of them wait for the others.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A few tests that take long, most of them one a notebook. They begin first where several cores share the
# work: a long test that begins last leaves the others idle.
LONG = ("test_browser.py", "test_notebooks.py", "test_grading_hostile.py", "test_make.py")
# Its tests share little, and that is quick to make. Those of the browser stay together: two browsers at
# once, each with a kernel, starve one another on two cores.
ONE_BY_ONE = ("test_notebooks.py",)

NOTE = "note"  # record_property(NOTE, text): a line for the end of the run, such as where pictures lie


def pytest_collection_modifyitems(items):
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Hands out whole files in the order above, as `--dist loadfile` does, or single tests of some."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return nodeid if file.endswith(ONE_BY_ONE) else file

    if config.getvalue("dist") == "loadfile":
        config.option.loadscopereorder = False  # xdist would begin with the files of most tests
        return Scheduling(config, log)


def pytest_terminal_summary(terminalreporter):
    skipped = Counter(
        (r.nodeid.split("::")[0], _reason(r)) for r in terminalreporter.stats.get("skipped", [])
    )
    for (file, reason), count in sorted(skipped.items()):
        terminalreporter.write_line(f"NOT VERIFIED: {count} of {file}: {reason}", yellow=True)
    reports = [r for key in ("passed", "failed") for r in terminalreporter.stats.get(key, [])]
    notes = {text for r in reports for name, text in r.user_properties if name == NOTE}
    for text in sorted(notes):
        terminalreporter.write_line(text)


def _reason(report) -> str:
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")


@pytest.fixture(autouse=True)
def grad_as_it_was():
    """Programs that a test runs turn gradients off for their process, which here is that of other tests."""
    before = torch.is_grad_enabled()
    yield
    torch.set_grad_enabled(before)


@pytest.fixture
def panels(monkeypatch) -> list:
    """The panels that a test shows, as in a live notebook."""
    from minitransformer.course import figures  # a suite without such a test need not load it

    made = []
    monkeypatch.delenv("COURSE_STATIC", raising=False)
    monkeypatch.setattr(figures, "display", lambda shown: None)
    widget_of = figures.Panel.widget
    monkeypatch.setattr(figures.Panel, "widget", lambda panel: made.append(panel) or widget_of(panel))
    return made
