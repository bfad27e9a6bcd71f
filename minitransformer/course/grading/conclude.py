"""From what is known of one task to its verdict.

The judge's verdict counts. What nbval reports comes out of the sandbox and is not to be trusted: it only
explains why there is no verdict, or takes a "passed" away because a cell did not end.
"""

import re
from dataclasses import replace

from minitransformer.course.checking import CRASHED, FAILED, TIMED_OUT, Verdict
from minitransformer.course.grading.copy import Answered, GradingCopy, defined_elsewhere
from minitransformer.course.grading.process import Limits, NbvalRun

ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
CELL_LINE = re.compile(
    r"Cell In\[\d+\], line (\d+)|ipykernel_\S+ in .*?line (\d+)|^\s*File .*?line (\d+)", re.M
)
MISSING_NAME = re.compile(r"NameError: name '(\w+)' is not defined")


def conclude(
    answered: Answered, judged: Verdict | None, events: list[dict], run: NbvalRun, limits: Limits
) -> Verdict | None:
    """The verdict on one task after a run of nbval; None where its turn never came.

    `events` are what nbval reported of the task's notebook.
    """

    def verdict(outcome: str, paragraph: str) -> Verdict:
        return Verdict(answered.task.id, answered.task.title, outcome, paragraph)

    if any(e.get("error") == "TooMuchOutput" for e in events):
        return verdict(CRASHED, f"More than {limits.output_chars:,} characters were printed.")
    if any(e.get("timed_out") for e in events):
        late = verdict(TIMED_OUT, f"A cell ran longer than {limits.cell_seconds:g} seconds.")
        return judged if judged and judged.outcome == TIMED_OUT else late
    if judged is not None:
        return judged
    if not any(e["event"] == "cell" for e in events):
        return None
    if _finished(events, answered):
        return verdict(*_explain(events))
    if run.stopped:
        return verdict(TIMED_OUT if run.stopped_for_time else CRASHED, run.stopped)
    return verdict(CRASHED, "The process that ran the notebook was killed.")


def never_started(answered: Answered, run: NbvalRun) -> Verdict:
    """The verdict where even a process of its own did not get to the first cell."""
    words = run.stopped or run.last_words
    return Verdict(answered.task.id, answered.task.title, CRASHED, f"No kernel could be started. {words}")


def with_hint(verdict: Verdict, graded: GradingCopy) -> Verdict:
    """Adds where a missing name is, if the learner has it in a cell that is not graded."""
    missing = MISSING_NAME.search(verdict.paragraph)
    number = defined_elsewhere(missing[1], graded) if missing else None
    if not number:
        return verdict
    hint = (
        f" It is defined in cell {number}, which is not an answer cell: only answer cells are graded, "
        "so move what they need into them."
    )
    return replace(verdict, paragraph=verdict.paragraph + hint)


def _explain(events: list[dict]) -> tuple[str, str]:
    """Why a notebook that ran to its end left no verdict."""
    broken = next((e for e in events if e.get("error")), {})
    if broken.get("error") == "KernelDied":
        return CRASHED, "The kernel died: the code ended its own process, or ran out of memory."
    if not broken.get("ename"):
        return FAILED, "The check cell ran, but no answer reached the grader. Does your code change `check`?"
    line = _line(str(broken.get("traceback")))
    where = f" (line {line})" if line else ""
    return FAILED, f"Your code raised {broken['ename']}: {broken.get('evalue')}{where}."


def _finished(events: list[dict], answered: Answered) -> bool:
    """Whether the last cell of the notebook has been reported on."""
    return any(e["event"] == "done" and e.get("cell") == len(answered.notebook.cells) - 1 for e in events)


def _line(trace: str) -> int | None:
    """The line of the learner's cell in a traceback."""
    found = [next(filter(None, m.groups())) for m in CELL_LINE.finditer(ANSI.sub("", trace))]
    return int(found[-1]) if found else None
