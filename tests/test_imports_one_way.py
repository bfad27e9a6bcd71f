"""Imports run one way: a file imports only what stands before it in ORDER, so that a reader can begin at
the top and never needs what comes later."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "minitransformer"
ORDER = [
    "families",
    "config",
    "kernels",
    "cache",
    "paged_cache",
    "ragged",
    "layers",
    "model",
    "quantization",
    "hub",
    "tokenizer",
    "checkpoint",
    "sampling",
    "streaming",
    "generate",
    "bundled",
    "roofline",
    "serving",
    "disaggregation",
    "simulate",
    "course",
]
ONLY = {"roofline": {"families", "config", "roofline"}}  # prices shapes; needs no model


def imported(source: str, module: str) -> set[str]:
    """The parts of our package that a file imports, anywhere in it: "config", "layers", or "" for the
    package itself. `module` is the file's dotted name, which relative imports start from; a package's
    own name ends in ".__init__"."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: -node.level] if node.level else []
            origin = ".".join(base + ([node.module] if node.module else []))
            # `from minitransformer import cache` may mean the file cache.py
            names |= {f"{origin}.{a.name}" for a in node.names} if origin == PACKAGE.name else {origin}
    ours = [name.split(".") for name in names if name.split(".")[0] == PACKAGE.name]
    return {parts[1] if len(parts) > 1 and is_part(parts[1]) else "" for parts in ours}


def is_part(name: str) -> bool:
    return name in ORDER or (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()


def wrong_imports(source: str, module: str) -> set[str]:
    """What a file imports and should not."""
    part = module.split(".")[1]
    if part == "__init__":  # the package's own names: anything but course
        return imported(source, module) & {"course"}
    allowed = ONLY.get(part, set(ORDER[: ORDER.index(part) + 1]))
    allowed = allowed | {""} if part == "course" else allowed  # the whole package is below course alone
    return imported(source, module) - allowed


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_run_one_way(file):
    module = ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)
    part = module.split(".")[1]
    assert part in [*ORDER, "__init__"], f"{part} has no place in the order yet: give it one in this file"
    wrong = wrong_imports(file.read_text(), module)
    assert not wrong, f"{module} imports {wrong}, which come after it"


@pytest.mark.parametrize(
    "source",
    [
        "import minitransformer.course",
        "from minitransformer.generate import decode",
        "from minitransformer import generate",
        "from minitransformer import Transformer",
        "from ..generate import decode",
        "from .. import generate",
        "def f():\n    from minitransformer.simulate.cluster import Cluster",
        "if TYPE_CHECKING:\n    import minitransformer.serving.engine as engine",
    ],
)
def test_an_upward_import_is_caught(source):
    assert wrong_imports(source, "minitransformer.layers.attention")


def test_a_downward_import_is_allowed():
    source = "import torch\nimport minitransformer.config\nfrom . import norm\nfrom ..cache import KVCache"
    assert imported(source, "minitransformer.layers.attention") == {"config", "layers", "cache"}
    assert not wrong_imports(source, "minitransformer.layers.attention")


def test_roofline_needs_no_model():
    assert wrong_imports("from minitransformer.model import Transformer", "minitransformer.roofline.costs")
    assert not wrong_imports(
        "from minitransformer.config import ModelConfig", "minitransformer.roofline.costs"
    )


def test_the_package_offers_nothing_of_the_course():
    assert wrong_imports("from minitransformer.course import show", "minitransformer.__init__")
