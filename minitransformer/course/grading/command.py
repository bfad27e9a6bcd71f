"""The command `grade`: several notebooks, one after the other, and the reports on them."""

import sys

from rich.console import Console

from minitransformer.course.checking import PASSED
from minitransformer.course.grading.notebook import BadNotebook
from minitransformer.course.grading.process import Limits
from minitransformer.course.grading.report import show, write_json, write_junit
from minitransformer.course.grading.run import Graded, grade


def run(args) -> int:
    """0 if every task of every notebook passed, 1 if one did not, 2 if a notebook could not be graded."""
    console = Console()
    limits = Limits(cell_seconds=args.timeout, memory_mb=args.memory)
    results: list[Graded] = []
    errors: dict[str, str] = {}
    for path in args.notebooks:
        try:
            with console.status(f"{path.name}: starting") as status:
                results.append(grade(path, args.course, limits, status.update))
        except BadNotebook as error:
            errors[str(path)] = str(error)
            print(f"error: {error}", file=sys.stderr)
        else:
            show(results[-1], console)
        # Written after every notebook, so that whoever stops the command keeps what is done.
        if args.json:
            write_json(results, errors, args.json)
        if args.junit:
            write_junit(results, errors, args.junit)
    all_passed = all(v.outcome == PASSED for graded in results for v in graded.verdicts)
    return 2 if errors else int(not all_passed)
