"""Runs notebooks and saves them in the one form that is committed, so that a diff shows what changed."""

import os
from contextlib import contextmanager
from pathlib import Path

from ipykernel.kernelspec import RESOURCES, get_kernel_dict
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from minitransformer.course.checking import CHECKS_VARIABLE
from minitransformer.course.course_files import Course, CourseError, read_notebook, write_notebook

KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
CELL_TIMEOUT = 300  # seconds


class ThisPython(KernelSpecManager):
    """Whatever kernel is asked for, it runs this interpreter."""

    def get_kernel_spec(self, kernel_name: str):
        return self.kernel_spec_class(resource_dir=RESOURCES, **get_kernel_dict())


def execute(path: Path, course: Course) -> bool:
    """Runs the notebook from top to bottom and saves it normalised; True where the file changed.

    Raises CourseError, and writes nothing, when a cell fails.
    """
    nb = read_notebook(path)
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=ThisPython())
    client = NotebookClient(
        nb,
        km=manager,
        timeout=CELL_TIMEOUT,
        store_widget_state=False,
        record_timing=False,
        resources={"metadata": {"path": str(path.parent)}},
    )
    with _environment({"COURSE_STATIC": "1", CHECKS_VARIABLE: str(course.checks)}):
        try:
            client.execute()
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            raise CourseError(f"{path}: {error}") from None
    return write_notebook(normalised(nb), path)


def normalised(nb):
    """The notebook without what differs from run to run or from machine to machine."""
    nb.nbformat, nb.nbformat_minor = 4, 5
    nb.metadata.pop("widgets", None)
    nb.metadata["kernelspec"] = KERNEL
    nb.metadata["language_info"] = {"name": "python"}
    for cell in nb.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = _joined(cell.outputs)
            for output in cell.outputs:
                _without_live_widget(output)
    return nb


def _joined(outputs: list) -> list:
    """Neighbouring pieces of one stream as one: how a kernel cuts them is chance."""
    joined: list = []
    for output in outputs:
        last = joined[-1] if joined else None
        if last and output.output_type == "stream" == last.output_type and output.name == last.name:
            last.text += output.text
        else:
            joined.append(output)
    return joined


def _without_live_widget(output):
    """Without its saved state a widget's view is a random id that shows an error; its text stays."""
    data = output.get("data", {})
    if WIDGET_VIEW in data and len(data) > 1:
        del data[WIDGET_VIEW]


@contextmanager
def _environment(changes: dict[str, str]):
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
