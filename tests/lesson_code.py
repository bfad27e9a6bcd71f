"""What a lesson defines, for the tests that hold it against the package."""

import ast
import linecache

import nbformat
from jupyter_lab import ROOT

IMPORTS = (ast.Import, ast.ImportFrom)
DEFINITIONS = (*IMPORTS, ast.FunctionDef, ast.ClassDef)


def code_cells(lesson: str) -> dict[str, str]:
    """The sources of the lesson's code cells by their ids."""
    cells = nbformat.read(ROOT / "lessons" / f"{lesson}.ipynb", as_version=4).cells
    return {cell.id: cell.source for cell in cells if cell.cell_type == "code"}


def run_cell(cell_id: str, source: str, names: dict, kinds: tuple[type, ...] = (ast.stmt,)):
    """Runs the statements of these kinds. Triton reads a kernel's source again, so the cell is entered where
    Python looks for source lines."""
    file = f"<cell {cell_id}>"
    linecache.cache[file] = (len(source), None, source.splitlines(True), file)
    body = [node for node in ast.parse(source).body if isinstance(node, kinds)]
    exec(compile(ast.Module(body, []), file, "exec"), names)


def definitions(cells: dict[str, str]) -> dict:
    """The lesson's functions and classes, each as it was defined last; nothing else of it is run."""
    names: dict = {}
    for cell_id, source in cells.items():
        run_cell(cell_id, source, names, DEFINITIONS)
    return names


def built(cells: dict[str, str], names: dict) -> dict:
    """`names`, and what the cells called build-... define."""
    for cell_id, source in cells.items():
        if cell_id.startswith("build-"):
            run_cell(cell_id, source, names)
    return names
