"""The answer cells of a solution, and small changes to them: most wrong answers are the right one, edited."""

from collections.abc import Callable
from pathlib import Path

import nbformat

SOLUTIONS = Path(__file__).parent.parent.parent / "solutions"


class Solution:
    """The cells of solutions/<name>.ipynb by their ids, as `cells`, and edits of them."""

    def __init__(self, name: str):
        notebook = nbformat.read(SOLUTIONS / f"{name}.ipynb", as_version=4)
        self.cells = {cell.id: cell.source for cell in notebook.cells}

    def edited(self, cell_id: str, *changes: tuple[str, str]) -> str:
        """A cell with each (old, new) replaced. Fails where the text to be changed is no longer there."""
        source = self.cells[cell_id]
        for old, new in changes:
            assert old in source, f"{cell_id} no longer holds {old!r}"
            source = source.replace(old, new)
        return source

    def edits(self, cell_id: str) -> Callable[..., str]:
        """`edited` for one cell: a function of the changes."""
        return lambda *changes: self.edited(cell_id, *changes)
