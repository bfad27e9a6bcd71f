"""What the checks of Triton exercises are made of: `TritonAnswer`, a learner's kernel as it is judged.

The source of the kernel is the answer. It is fetched as text, vetted (kernel_source.py), and then launched
here, by the check, on fresh tensors within poisoned buffers (poisoned.py, triton_runner.py) and compiled for
a GPU that need not be there. So nothing rests on what the learner's process says of itself. A wrapper, being
ordinary Python, runs where the learner's code lives, and what it returns is compared.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch

from minitransformer.course.checking import Built, CheckFailed, Proxy, expect, expect_close, keep
from minitransformer.course.checks.compiled_kernel import (
    expect_float32_sums,
    expect_no_spills,
    expect_tensor_cores,
)
from minitransformer.course.checks.triton_words import (
    compile_words,
    error_words,
    expect_inside,
    layout,
    may_change,
    result_of,
    sentence,
    stray_words,
)
from minitransformer.course.kernel_source import checked
from minitransformer.course.memory_trace import sectors
from minitransformer.course.triton_runner import Input, Output, run

__all__ = [
    "Input",
    "Output",
    "TritonAnswer",
    "expect_float32_sums",
    "expect_no_spills",
    "expect_tensor_cores",
]


class TritonAnswer:
    """A learner's @triton.jit kernel, and its wrapper where the task asks for one.

    `kernel` and `wrapper` are proxies, as a check function gets them. Raises CheckFailed where the kernel is
    no kernel, or holds what no kernel can hold.
    """

    def __init__(self, kernel: Proxy, wrapper: Proxy | None = None):
        if not isinstance(kernel, Proxy):
            raise CheckFailed("The answer should be a kernel, a function under @triton.jit.")
        self.wrapper = wrapper
        self.source = checked(keep(kernel, Built("kernel_source"))(kernel))
        self.gpu = torch.cuda.is_available()

    @property
    def note(self) -> str:
        """What a check function returns at its end: where the kernel was run, beside the interpreter."""
        if self.gpu:
            return f"Run by the interpreter and on this machine's {torch.cuda.get_device_name()}."
        return "Run by the interpreter and compiled for sm_90; not verified on a GPU, since none is here."

    def launch(self, grid: Sequence[int], args: Mapping, given: str = "", *, gpu: bool = False) -> dict:
        """Runs kernel[grid](*args.values()) and returns {name: tensor} of all it may write to.

        `args` are in the order of the task's signature: tensors (or Input, Output of triton_runner), numbers
        and constexprs; the names are for the messages. Fails in words where the kernel raises, reads or
        writes outside its tensors, writes to an input, or leaves part of an output unwritten.
        """
        self._expect_parameters(args)
        launched = run(self.source, grid, dict(args), gpu=gpu)
        start = f"For {given}, " if given else ""
        start += "on the GPU, " if gpu else ""
        if launched.error:
            raise CheckFailed(sentence(start + error_words(launched.error, "your kernel raised")))
        expect_inside(launched, args, start)
        return {name: result_of(name, after, args[name], start) for name, after in launched.tensors.items()
                if may_change(args[name])}  # fmt: skip

    def sectors(self, grid: Sequence[int], args: Mapping) -> dict[str, tuple[int, int]]:
        """{name: (sectors of 32 bytes that all accesses to it move, the least that could do)}."""
        launched = run(self.source, grid, dict(args), keep=True)
        totals = dict.fromkeys(args, (0, 0))
        for access in launched.accesses:
            moved, least = sectors(access)
            before = totals[access.tensor]
            totals[access.tensor] = (before[0] + moved, before[1] + least)
        return totals

    def expect(
        self,
        grid: Sequence[int],
        args: Mapping,
        wanted: Mapping[str, torch.Tensor],
        given: str = "",
        likely: Mapping[str, Sequence] | None = None,
        *,
        tolerance: float | None = None,
        gpu_tolerance: float | None = None,
    ):
        """Launches the kernel, on a GPU too where there is one, and compares each output of `wanted`.

        `wanted` are float64 tensors by argument name; `likely` lists, by the same names, pairs (wrong value,
        cause) as in `expect_close`. `gpu_tolerance` is for sums in another order, or in TF32.
        """
        for gpu in (False, True) if self.gpu else (False,):
            allowed = gpu_tolerance if gpu and gpu_tolerance is not None else tolerance
            came = self.launch(grid, args, given, gpu=gpu)
            for name, right in wanted.items():
                shown = f"{name} from the GPU" if gpu else name
                causes = (likely or {}).get(name, ())
                expect_close(came[name], right, given, causes, tolerance=allowed, name=shown)

    def compiles(
        self,
        args: Mapping,
        *,
        dtypes: Mapping[str, torch.dtype] | None = None,
        num_warps: int = 4,
        num_stages: int = 3,
        arch: int = 90,
    ):
        """Compiles the kernel for a GPU as a launch with `args` would; returns kernels.compiling's Compiled.

        Tensors here count by dtype alone; `dtypes` puts others in their place, as {"x": torch.bfloat16}.
        """
        self._expect_parameters(args)
        signature, constexprs = {}, {}
        for parameter, (name, value) in zip(self.source.parameters, args.items(), strict=True):
            if parameter in self.source.constexprs:
                constexprs[parameter] = value
            else:
                signature[parameter] = _type_of(value, (dtypes or {}).get(name))
        options = {"arch": arch, "num_warps": num_warps, "num_stages": num_stages, "name": self.source.name}
        parts = (tuple(part.items()) for part in (signature, constexprs, options))
        result = _compiled(self.source.compilable, *parts)
        if isinstance(result, str):
            raise CheckFailed(compile_words(result, arch))
        return result

    def expect_wrapper(
        self,
        args: Sequence,
        wanted,
        given: str = "",
        likely: Sequence = (),
        *,
        kwargs: Mapping | None = None,
        tolerance: float | None = None,
        dtype: torch.dtype | None = None,
        name: str = "the result",
    ):
        """Calls the wrapper, where the learner's code lives, on tensors within poison, and compares.

        Tensors in `args` may be Input, to give them strides. `wanted` may be a list where the wrapper returns
        several tensors.
        """
        call = keep(self.wrapper, Built("poisoned_call"))
        came = call(self.wrapper, [_plain_input(a) for a in args], dict(kwargs or {}))
        start = f"For {given}, " if given else ""
        if came["launches"]:
            raise CheckFailed(sentence(f"{start}launched by the wrapper, {stray_words(came['launches'][0])}"))
        for position, strays in came["strays"].items():
            where = f"element {strays[0]} of argument {position}, which lies outside of it"
            raise CheckFailed(sentence(f"{start}the wrapper's kernel wrote to {where}. Is a mask missing?"))
        expect_close(came["result"], wanted, given, likely, tolerance=tolerance, dtype=dtype, name=name)

    def _expect_parameters(self, args: Mapping):
        mine, task = self.source.parameters, tuple(args)
        expect(
            len(mine) == len(task),
            f"{self.source.name} should take {len(task)} parameters, ({', '.join(task)}), but it takes "
            f"{len(mine)}: ({', '.join(mine)}).",
        )


@lru_cache(maxsize=64)
def _compiled(text: str, signature: tuple, constexprs: tuple, options: tuple):
    """Compiled, or what the compiler says instead. Checked again, a kernel need not be compiled again."""
    from minitransformer.kernels.compiling import CompileError, compile_kernel

    try:
        return compile_kernel(text, dict(signature), dict(constexprs), **dict(options))
    except CompileError as error:
        return str(error)


def _plain_input(arg):
    if not isinstance(arg, (torch.Tensor, Input)):
        return {"plain": arg}
    values = arg.values if isinstance(arg, Input) else arg
    return {"values": values, "strides": list(layout(arg)[1])}


def _type_of(value, dtype: torch.dtype | None) -> str:
    from minitransformer.kernels.compiling import TYPES

    if isinstance(value, (torch.Tensor, Input, Output)):
        held = value.values if isinstance(value, Input) else value
        return f"*{TYPES[dtype or held.dtype]}:16"
    if isinstance(value, bool):
        return "i1"
    if isinstance(value, int):
        return "i32" + (":1" if value == 1 else ":16" if value % 16 == 0 else "")
    return "none" if value is None else "fp32"
