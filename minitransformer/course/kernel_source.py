"""A learner's Triton kernel as text: read where it lives, and checked before anybody else runs it.

`read_source` runs beside the learner's code and is trusted with nothing; `checked` rebuilds from what it
says a module that holds nothing but @triton.jit functions, in which only Triton's own operations, numbers and
loops occur. Such a module can reach no file, no network and no other object, so a check may run it. What
the kernel computes, and whether it compiles, is not known here.
"""

import ast
import contextlib
import importlib
import inspect
import keyword
import re
import textwrap
from dataclasses import dataclass

from minitransformer.course.expect import CheckFailed
from minitransformer.course.remote import STUB, NotAttempted

MAX_FUNCTIONS, MAX_CHARACTERS = 20, 40_000
PACKAGE = re.compile(r"minitransformer\.kernels(\.[a-z_]+)?")


def names(text: str) -> frozenset[str]:
    return frozenset(text.split())


TL_DTYPES = names(
    """bfloat16 float16 float32 float64 float8e4nv float8e5 int1 int8 int16 int32 int64 uint8 uint16 uint32
    uint64 void"""
)
TL_NAMES = TL_DTYPES | names(
    """PropagateNan abs add arange argmax argmin associative_scan assume atomic_add atomic_and atomic_cas
    atomic_max atomic_min atomic_or atomic_xchg atomic_xor broadcast broadcast_to cast cat cdiv ceil clamp
    constexpr cos cumprod cumsum debug_barrier device_assert device_print div_rn dot dot_scaled erf exp exp2
    expand_dims fdiv flip floor fma full gather histogram interleave join load load_tensor_descriptor log log2
    make_tensor_descriptor math max max_constancy max_contiguous maximum min minimum mul multiple_of
    num_programs permute program_id rand randint randn range ravel reduce reduce_or reshape rsqrt sigmoid sin
    softmax sort split sqrt sqrt_rn squeeze static_assert static_print static_range store
    store_tensor_descriptor sub sum swizzle2d topk trans umulhi unsqueeze view where xor_sum zeros
    zeros_like"""
)
MATH_NAMES = names(
    """abs ceil clamp cos div_rn erf exp exp2 fdiv floor fma log log2 maximum minimum rsqrt sin sqrt sqrt_rn
    umulhi"""
)
TENSOR_NAMES = names(
    """T abs argmax argmin associative_scan atomic_add atomic_max atomic_min broadcast_to cast cdiv ceil cos
    cumprod cumsum dtype element_ty erf exp exp2 expand_dims flip floor gather item load log log2 logical_and
    logical_or max min permute ravel reduce reshape rsqrt shape sigmoid sin softmax sort split sqrt sqrt_rn
    store sum to trans type value view xor_sum"""
)
BUILTINS = names("range min max abs float int bool len print tuple isinstance True False None")
SYNTAX = (
    ast.FunctionDef, ast.arguments, ast.arg, ast.Assign, ast.AugAssign, ast.AnnAssign, ast.For, ast.While,
    ast.If, ast.Expr, ast.Return, ast.Pass, ast.Break, ast.Continue, ast.Assert, ast.BoolOp, ast.BinOp,
    ast.UnaryOp, ast.Compare, ast.Call, ast.keyword, ast.IfExp, ast.Attribute, ast.Subscript, ast.Slice,
    ast.Name, ast.Constant, ast.Tuple, ast.List, ast.Starred, ast.JoinedStr, ast.FormattedValue,
    ast.expr_context,
    ast.operator, ast.unaryop, ast.boolop, ast.cmpop,
)  # fmt: skip


@dataclass(frozen=True)
class KernelSource:
    """A module of one kernel and what it calls; `parameters` are the kernel's, `constexprs` some of them."""

    name: str
    text: str
    parameters: tuple[str, ...]
    constexprs: frozenset[str]
    imports: dict[str, str]

    @property
    def compilable(self) -> str:
        """The text with the package's functions written out, so that compiling needs no import of them."""
        from minitransformer.kernels.source_text import kernel_text

        text = self.text
        for name, module in self.imports.items():
            text = text.replace(_import_line(name, module), kernel_text(_package_kernel(name, module)))
        return text


# --- beside the learner's code --------------------------------------------------------------------------


def read_source(kernel) -> dict:
    """The sources of a @triton.jit function and of those it calls, and the constants that they name.

    {"kernel": name, "functions": {name: source}, "constants": {name: [kind, value]}, "imports": {name:
    module}}, or {"error": what `kernel` is instead}.
    """
    if not _is_jit(kernel):
        return {"error": type(kernel).__name__}
    found = {"kernel": "", "functions": {}, "constants": {}, "imports": {}}
    waiting = [(_plain_function(kernel).__name__, kernel)]
    found["kernel"] = waiting[0][0]
    while waiting:
        name, jitted = waiting.pop()
        function = _plain_function(jitted)
        found["functions"][name] = textwrap.dedent(inspect.getsource(function))
        for used in function.__code__.co_names:
            _note_global(used, function.__globals__.get(used), found, waiting)
    return found


def _note_global(name: str, value, found: dict, waiting: list):
    """Files what a kernel names: another kernel, a constant, or one of the package's functions."""
    if name in found["functions"] or any(name == other for other, _ in waiting):
        return
    if _is_jit(value):
        module = _plain_function(value).__module__
        if PACKAGE.fullmatch(module or ""):
            found["imports"][name] = module
        else:
            waiting.append((name, value))
    elif type(value).__name__ == "constexpr" and isinstance(value.value, (int, float, bool, str)):
        found["constants"][name] = ["constexpr", value.value]
    elif isinstance(value, (int, float, bool)):
        found["constants"][name] = ["plain", value]
    elif type(value).__name__ == "dtype" and getattr(value, "name", None):
        found["constants"][name] = ["dtype", str(value.name)]


def _is_jit(value) -> bool:
    return type(value).__name__ in ("JITFunction", "InterpretedFunction", "Autotuner", "Heuristics")


def _plain_function(value):
    while _is_jit(value):
        value = value.fn
    return value


# --- where the check is ---------------------------------------------------------------------------------


def checked(read) -> KernelSource:
    """The module to run, from what `read_source` said.

    Raises NotAttempted for one that still holds an exercise's stub, CheckFailed, in words, for all else.
    """
    try:
        if "error" in read:
            raise CheckFailed(
                f"The answer should be a kernel, a function under @triton.jit, but an object of type "
                f"{str(read['error'])[:60]} came."
            )
        functions, constants, imports = read["functions"], read["constants"], read["imports"]
        texts = [*functions.values(), *functions, *constants, *imports]
        if any(f'NotImplementedError("{STUB}")' in text for text in functions.values()):
            raise NotAttempted
        if len(functions) > MAX_FUNCTIONS or sum(map(len, texts)) > MAX_CHARACTERS:
            raise CheckFailed("The kernel's source is longer than a check reads.")
        return _module(read["kernel"], functions, constants, imports)
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise CheckFailed(
            f"The kernel's source could not be read ({type(error).__name__}: {error})."
        ) from None


def _module(kernel: str, functions: dict, constants: dict, imports: dict) -> KernelSource:
    known = {*functions, *constants, *imports}
    lines = ["import triton", "import triton.language as tl", ""]
    lines += [_import_line(name, module) for name, module in imports.items()]
    lines += [_constant_line(name, *value) for name, value in constants.items()]
    parsed = {name: _function(name, text, known) for name, text in functions.items()}
    # What is called comes first; Triton looks names up late, so the order is only for the reader.
    for name in [*(n for n in functions if n != kernel), kernel]:
        lines += ["", "", "@triton.jit", parsed[name][1]]
    arguments = parsed[kernel][0].args.args
    fixed = frozenset(a.arg for a in arguments if a.annotation and "constexpr" in ast.unparse(a.annotation))
    parameters = tuple(a.arg for a in arguments)
    return KernelSource(kernel, "\n".join(lines), parameters, fixed, dict(imports))


def _import_line(name: str, module: str) -> str:
    _package_kernel(name, module)
    return f"from {module} import {name}"


def _package_kernel(name: str, module: str):
    """A @triton.jit function of the package; its ordinary functions, which can do more, are refused."""
    found = None
    if _is_name(name) and PACKAGE.fullmatch(module):
        with contextlib.suppress(ImportError):
            found = getattr(importlib.import_module(module), name, None)
    if not _is_jit(found):
        raise CheckFailed(f"A kernel can't use {name!r} of {module!r}: that is no kernel of this package.")
    return found


def _constant_line(name: str, kind: str, value) -> str:
    if not _is_name(name) or kind not in ("constexpr", "plain", "dtype"):
        raise CheckFailed(f"A kernel can't use the constant {name!r}.")
    if kind == "dtype":
        short = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "fp64": "float64"}.get(
            value, value
        )
        if short not in TL_DTYPES:
            raise CheckFailed(f"A kernel can't use the constant {name!r}.")
        return f"{name} = tl.constexpr(tl.{short})"
    if type(value) not in (int, float, bool, str):
        raise CheckFailed(f"A kernel can't use the constant {name!r}.")
    text = f"float({str(value)!r})" if isinstance(value, float) else repr(value)
    return f"{name} = tl.constexpr({text})" if kind == "constexpr" else f"{name} = {text}"


def _function(name: str, text: str, known: set[str]) -> tuple[ast.FunctionDef, str]:
    """The function's tree and its text from `def` on, decorators left out."""
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise CheckFailed(f"The source of {name} is no Python: {error}.") from None
    if len(tree.body) != 1 or not isinstance(tree.body[0], ast.FunctionDef) or tree.body[0].name != name:
        raise CheckFailed(f"The source of {name} should be one function of that name under @triton.jit.")
    function = tree.body[0]
    function.decorator_list = []
    if not _is_name(name) or function.args.posonlyargs or function.args.kwonlyargs or function.args.kwarg:
        raise CheckFailed(f"The parameters of {name} should be plain ones: no * and no /.")
    names = {a.arg for a in function.args.args} | known | BUILTINS
    names |= {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    lines = text.splitlines()
    for node in ast.walk(function):
        problem = _problem(node, names)
        if problem:
            line = lines[node.lineno - 1].strip() if hasattr(node, "lineno") else name
            raise CheckFailed(f"In {name}, at `{line[:120]}`: {problem}")
    return function, "\n".join(lines[function.lineno - 1 :])


def _problem(node: ast.AST, names: set[str]) -> str:
    """Why this piece of syntax can't be in a kernel, or ""."""
    if not isinstance(node, SYNTAX):
        kind = type(node).__name__.lower()
        return f"a kernel can't hold Python's {kind}; Triton compiles plain operations only."
    if isinstance(node, ast.Name):
        if node.id in ("tl", "triton"):
            return "" if isinstance(node.ctx, ast.Load) else f"the name {node.id} is Triton's own."
        if node.id.startswith("__"):
            return f"{node.id} has no place in a kernel."
        return (
            ""
            if node.id in names
            else f"the name {node.id} is not defined in the kernel or as a tl.constexpr."
        )
    if isinstance(node, ast.Attribute):
        return _attribute_problem(node)
    if isinstance(node, ast.Call) and not isinstance(node.func, (ast.Name, ast.Attribute)):
        return "only named functions can be called in a kernel."
    return ""


def _attribute_problem(node: ast.Attribute) -> str:
    owner = ast.unparse(node.value)
    if owner == "tl":
        return "" if node.attr in TL_NAMES else f"tl.{node.attr} can't be used in an exercise."
    if owner == "tl.math":
        return "" if node.attr in MATH_NAMES else f"tl.math.{node.attr} can't be used in an exercise."
    if owner == "triton":
        allowed = ("cdiv", "next_power_of_2")
        return "" if node.attr in allowed else f"triton.{node.attr} can't be used inside a kernel."
    return "" if node.attr in TENSOR_NAMES else f".{node.attr} is nothing that a tensor in a kernel has."


def _is_name(name: str) -> bool:
    return name.isidentifier() and not keyword.iskeyword(name) and not name.startswith("__")
