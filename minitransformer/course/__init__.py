"""What the notebooks import. Nothing in the engine needs this folder; delete it and the rest still runs."""

from minitransformer.course.checking import check, napkin
from minitransformer.course.figures import interact, show
from minitransformer.course.predictions import compare, note, predict
from minitransformer.course.tables import number, table

__all__ = ["check", "compare", "interact", "napkin", "note", "number", "predict", "show", "table"]
