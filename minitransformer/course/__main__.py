"""Commands of the course: python -m minitransformer.course {grade,sync,notebooks} ..."""

import argparse
import sys
import time
from pathlib import Path

from minitransformer.course.course_files import HERE, Course, CourseError, notebooks_in


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; 0 when all is well, 1 when something is not, 2 for a wrong call."""
    args = _parser().parse_args(arguments)
    args.course = Course(args.root.resolve())
    try:
        return args.run(args)
    except CourseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m minitransformer.course", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    _grade_command(commands)
    sync = commands.add_parser("sync", help="make exercises/ from solutions/")
    sync.add_argument("--check", action="store_true", help="change nothing; exit 1 if out of step")
    sync.set_defaults(run=_sync)
    notebooks = commands.add_parser("notebooks", help="run notebooks and save them as they are committed")
    notebooks.add_argument("paths", nargs="*", type=Path, help="default: all lessons and solutions")
    notebooks.set_defaults(run=_notebooks)
    for command in commands.choices.values():
        command.add_argument(
            "--root", type=Path, default=HERE.root, help="a folder with the layout of this repository"
        )
    return parser


def _grade_command(commands):
    grade = commands.add_parser("grade", help="grade exercise notebooks, which are only read")
    grade.add_argument("notebooks", nargs="+", type=Path)
    grade.add_argument("--json", type=Path, metavar="F", help="write the results as JSON")
    grade.add_argument("--junit", type=Path, metavar="F", help="write the results as JUnit XML")
    grade.add_argument("--timeout", type=_positive, default=20, metavar="S", help="seconds a cell (20)")
    grade.add_argument("--memory", type=_positive, default=4096, metavar="MB", help="of a kernel (4096)")
    grade.set_defaults(run=_grade)


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _grade(args) -> int:
    from minitransformer.course.grading import command

    return command.run(args)


def _sync(args) -> int:
    from minitransformer.course.sync import sync

    stale = sync(args.course, write=not args.check)
    word = "out of step" if args.check else "written"
    for path, changed in stale.items():
        print(f"{path.name}: {word if changed else 'in step'}")
    return int(args.check and any(stale.values()))


def _notebooks(args) -> int:
    from minitransformer.course.execute import execute

    paths = args.paths or notebooks_in(args.course.lessons) + notebooks_in(args.course.solutions)
    failed = 0
    for path in paths:
        start = time.perf_counter()
        try:
            changed = execute(path, args.course)
        except CourseError as error:
            print(f"failed: {error}", file=sys.stderr)
            failed += 1
        else:
            print(f"{path}: {'saved' if changed else 'unchanged'}, {time.perf_counter() - start:.0f} s")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
