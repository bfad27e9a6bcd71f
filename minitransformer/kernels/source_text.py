"""The source of a kernel together with all that it needs, as one text that stands alone.

A kernel may live in a module or in a notebook cell, and may call other @triton.jit functions and read
global constants. The text holds them all, so that another process can compile the kernel without
importing the module that it came from. What Triton could not use inside a kernel anyway is left out.
"""

import ast
import inspect
import textwrap
from types import ModuleType

import triton.language as tl

from minitransformer.kernels.runtime import UPCAST

HEADER = "import triton\nimport triton.language as tl\n"


def plain_function(kernel):
    """The Python function below @triton.jit and @triton.autotune; raises TypeError for anything else."""
    if not hasattr(kernel, "fn"):
        raise TypeError(f"a kernel is a function under @triton.jit, got {type(kernel).__name__}")
    while hasattr(kernel, "fn"):
        kernel = kernel.fn
    return kernel


def kernel_text(kernel) -> str:
    """A Python source that defines the kernel, and before it what it uses."""
    parts: dict[str, str] = {}  # in the order in which they can be run
    _add_function(plain_function(kernel), parts)
    return HEADER + "\n".join(parts.values())


def _add_function(function, parts: dict[str, str]):
    if function.__name__ in parts:
        return
    try:
        source = textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError):
        raise ValueError(
            f"the source of {function.__name__} is not to be found: define it in a file or a cell"
        ) from None
    node = ast.parse(source).body[0]
    parts[function.__name__] = ""  # its place, should it call itself
    for name in sorted({n.id for n in ast.walk(node) if isinstance(n, ast.Name)}):
        if name in function.__globals__ and name not in parts:
            _add_value(name, function.__globals__[name], parts)
    del parts[function.__name__]
    # Other decorators than jit (autotune, heuristics) choose how to launch, and may need more names.
    lines = source.splitlines()[node.lineno - 1 :]
    parts[function.__name__] = "\n@triton.jit\n" + "\n".join(lines) + "\n"


def _add_value(name: str, value, parts: dict[str, str]):
    if isinstance(value, ModuleType):
        parts[name] = f"import {value.__name__} as {name}"
    elif value is UPCAST:
        parts[name] = f"{name} = tl.constexpr(False)"  # compiled code is not interpreted
    elif isinstance(value, tl.constexpr):
        parts[name] = f"{name} = tl.constexpr({_literal(value.value)})"
    elif isinstance(value, (bool, int, float, str, tl.dtype)):
        parts[name] = f"{name} = {_literal(value)}"
    elif _origin(value).split(".")[0] == "triton":
        parts[name] = f"from {_origin(value)} import {_function(value).__name__} as {name}"
    elif hasattr(value, "fn"):
        _add_function(_function(value), parts)
        if _function(value).__name__ != name:
            parts[name] = f"{name} = {_function(value).__name__}"


def _function(value):
    return plain_function(value) if hasattr(value, "fn") else value


def _origin(value) -> str:
    return str(getattr(_function(value), "__module__", ""))


def _literal(value) -> str:
    if isinstance(value, tl.dtype):
        return f"tl.dtype({value.name!r})"
    return f"float({str(value)!r})" if isinstance(value, float) else repr(value)
