"""Grades one notebook: all tasks in one nbval process, and what a hang or crash left over in another."""

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import nbformat

from minitransformer.course.checking import NOT_ATTEMPTED, Verdict
from minitransformer.course.course_files import HERE, Course
from minitransformer.course.grading.conclude import conclude, never_started, with_hint
from minitransformer.course.grading.copy import Answered, GradingCopy, grading_copy
from minitransformer.course.grading.judge import Judge
from minitransformer.course.grading.notebook import read_learner
from minitransformer.course.grading.process import Limits, NbvalRun
from minitransformer.course.grading.sandbox import Box


@dataclass
class Graded:
    """The result for one notebook; `means` says how well it was shut in, `notes` how answers were found."""

    path: Path
    exercise: str
    verdicts: list[Verdict]
    notes: list[str] = field(default_factory=list)
    means: str = ""
    seconds: float = 0.0


def grade(path: Path, course: Course = HERE, limits: Limits = Limits(), show=lambda text: None) -> Graded:
    """Grades the notebook at `path`, which is only read. `show` is told what is going on.

    Raises BadNotebook (a ValueError) for what is no exercise of the course.
    """
    start = time.perf_counter()
    graded = grading_copy(path, read_learner(path), course)
    waiting = {t.task.id: t for t in graded.tasks if t.attempted}
    untouched = [t.task for t in graded.tasks if not t.attempted]
    done = {task.id: Verdict(task.id, task.title, NOT_ATTEMPTED) for task in untouched}
    means = ""
    if waiting:
        # Loaded by the checks of kernels alone; their processes take seconds to start.
        if runner := sys.modules.get("minitransformer.course.triton_runner"):
            runner.start_workers()
        with Box(course, limits.memory_mb) as box:
            means = str(box.means)
            done |= _Rounds(box, graded, limits, show).run(waiting)
    verdicts = [done[t.task.id] for t in graded.tasks]
    return Graded(path, graded.exercise, verdicts, graded.notes, means, time.perf_counter() - start)


class _Rounds:
    """Runs nbval over the tasks of one notebook until each has its verdict."""

    def __init__(self, box: Box, graded: GradingCopy, limits: Limits, show):
        self.box, self.graded, self.limits, self.show = box, graded, limits, show
        self.files: dict[str, Path] = {}

    def run(self, tasks: dict[str, Answered]) -> dict[str, Verdict]:
        """Each round decides at least the task that ended it, so this ends."""
        for n, (task_id, answered) in enumerate(tasks.items()):
            self.files[task_id] = self.box.notebooks / f"task{n}.ipynb"
            nbformat.write(answered.notebook, self.files[task_id])
        specs = {task_id: answered.task for task_id, answered in tasks.items()}
        done: dict[str, Verdict] = {}
        with Judge(self.box.socket, specs, self.limits.cell_seconds) as judge:
            while left := {t: answered for t, answered in tasks.items() if t not in done}:
                done |= self._round(left, judge) or self._alone(*next(iter(left.items())), judge)
        return done

    def _alone(self, task_id: str, answered: Answered, judge: Judge) -> dict[str, Verdict]:
        """A task in a process of its own, where nothing but itself can keep it from running."""
        return self._round({task_id: answered}, judge, last=True)

    def _round(self, tasks: dict[str, Answered], judge: Judge, last: bool = False) -> dict[str, Verdict]:
        """One nbval process. Tasks whose turn never came are left out, unless it is their last chance."""
        run = NbvalRun(self.box, [self.files[t] for t in tasks], self.limits)
        run.watch(self._tell)
        judge.settle()
        done = {}
        for task_id, answered in tasks.items():
            events = run.events[self.files[task_id].stem]
            verdict = conclude(answered, judge.verdicts.get(task_id), events, run, self.limits)
            if verdict is None and last:
                verdict = never_started(answered, run)
            if verdict is not None:
                done[task_id] = with_hint(verdict, self.graded)
        return done

    def _tell(self, event: dict):
        for task_id, file in self.files.items():
            if event.get("event") == "kernel" and event.get("notebook") == file.stem:
                self.show(f"{task_id}: running")
