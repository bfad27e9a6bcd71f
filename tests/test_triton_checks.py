"""The checks of Triton exercises: right kernels pass, and each planted fault is named.

Kernels are sources here, as in a learner's cell: each is run as one would be, and offered through a proxy.
"""

import linecache
import math

import pytest
import torch

from minitransformer.course.checking import CheckFailed, Served, expect_close
from minitransformer.course.checks.triton_checks import (
    Input,
    Output,
    TritonAnswer,
    expect_float32_sums,
    expect_no_spills,
    expect_tensor_cores,
)
from minitransformer.course.kernel_source import checked
from minitransformer.course.poisoned import Poisoned, padded_strides
from minitransformer.course.remote import LocalLink
from minitransformer.kernels.runtime import INTERPRETED

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="kernels are compiled for a GPU in this process")

SOFTMAX = """
@triton.jit
def softmax_kernel(x_ptr, out_ptr, stride, N, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    cols = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * stride + cols, mask=cols < N, other=-float("inf"))
    e = tl.exp(x - tl.max(x, axis=0))
    tl.store(out_ptr + row * N + cols, e / tl.sum(e, axis=0), mask=cols < N)
"""
MATMUL = """
@triton.jit
def matmul_kernel(a_ptr, b_ptr, c_ptr, K, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
    for k in range(0, K, BLOCK):
        a = tl.load(a_ptr + at[:, None] * K + k + at[None, :])
        b = tl.load(b_ptr + (k + at)[:, None] * BLOCK + at[None, :])
        acc += tl.dot(a, b)
    tl.store(c_ptr + at[:, None] * BLOCK + at[None, :], acc)
"""


def proxy_of(name: str, source: str):
    """The object `name` of a cell with that source, as a check gets it."""
    source = "import torch\nimport triton\nimport triton.language as tl\n" + source
    file = f"<answer {abs(hash(source))}>"
    linecache.cache[file] = (len(source), None, source.splitlines(True), file)
    names = {"__name__": "__main__"}
    exec(compile(source, file, "exec"), names)
    served, blobs = Served(), []
    return LocalLink(served).unpack(served.pack(names[name], blobs), blobs)


def softmax_args(x, gap: int = 0) -> dict:
    M, N = x.shape
    stride = padded_strides(x.shape, gap)
    block = 2 ** math.ceil(math.log2(N))
    return {"x": Input(x, stride), "out": Output((M, N)), "stride": stride[0], "N": N, "BLOCK": block}


def matmul_args(K: int, block: int) -> dict:
    a, b = torch.randn(block, K), torch.randn(K, block)
    return {"a": a, "b": b, "c": Output((block, block)), "K": K, "BLOCK": block}


def check_softmax(source: str, gap: int = 0, shape=(5, 70)):
    torch.manual_seed(0)
    x = torch.randn(shape)
    answer = TritonAnswer(proxy_of("softmax_kernel", source))
    answer.expect(shape[:1], softmax_args(x, gap), {"out": x.double().softmax(-1)}, f"{shape[0]} rows")


@pytest.mark.parametrize(("gap", "shape"), [(0, (5, 70)), (3, (5, 70)), (0, (1, 1)), (9, (3, 64))])
def test_a_right_kernel_passes_with_rows_apart_too(gap, shape):
    check_softmax(SOFTMAX, gap, shape)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (', mask=cols < N, other=-float("inf")', "", ["outside x", "program", "tl.load", "mask"]),
        ("axis=0), mask=cols < N)", "axis=0))", ["outside out", "writes", "tl.store"]),
        ("row * stride + cols", "row * N + cols", ["outside x", "gaps"]),
        (', other=-float("inf")', ", other=0.0", ["relative error"]),
        ("mask=cols < N)\n", "mask=cols < N - 1)\n", ["never written"]),
        ("x_ptr + row * stride", "x_ptr + row * stride - 1", ["before its first element"]),
        ("row * N + cols, e", "row * N + cols, row * 1000", ["relative error"]),
        ("tl.max(x, axis=0)", "tl.max(x, axis=1)", ["raised"]),
        ("tl.exp(x", "torch.exp(x", ["torch is not defined"]),
        ("row = tl.program_id(0)", "import os", ["can't hold"]),
        ("row = tl.program_id(0)", "row = ().__class__", [".__class__"]),
        ("row = tl.program_id(0)", "row = tl.core.os", ["tl.core"]),
        ("stride, N, BLOCK", "stride, N, M, BLOCK", ["5 parameters"]),
    ],
)
def test_a_fault_is_named(old, new, words):
    assert old in SOFTMAX
    with pytest.raises(CheckFailed) as failed:
        check_softmax(SOFTMAX.replace(old, new), gap=7)
    for word in words:
        assert word in str(failed.value)


def test_a_read_past_the_end_that_does_no_harm_is_found():
    source = SOFTMAX.replace(
        'x = tl.load(x_ptr + row * stride + cols, mask=cols < N, other=-float("inf"))',
        'x = tl.where(cols < N, tl.load(x_ptr + row * stride + cols), -float("inf"))',
    )
    with pytest.raises(CheckFailed, match=r"program .* reads .* outside x"):
        check_softmax(source)


def test_a_kernel_that_writes_to_its_input_is_found():
    source = SOFTMAX.replace(
        "    e = ", "    tl.store(x_ptr + row * stride + cols, x, mask=cols < N)\n    e = "
    )
    check_softmax(source)  # the same values again: no harm
    with pytest.raises(CheckFailed, match="wrote to x"):
        check_softmax(source.replace("cols, x, mask", "cols, x + 1, mask"))


def test_what_a_kernel_calls_and_the_constants_it_names_come_along():
    source = "SCALE = tl.constexpr(2.0)\n@triton.jit\ndef twice(x):\n    return x * SCALE\n"
    source += "@triton.jit\ndef copy_kernel(x_ptr, out_ptr):\n    tl.store(out_ptr, twice(tl.load(x_ptr)))\n"
    answer = TritonAnswer(proxy_of("copy_kernel", source))
    args = {"x": torch.tensor([1.5]), "out": Output((1,))}
    assert answer.launch((1,), args)["out"].item() == 3.0
    assert answer.compiles(args).registers > 0


def test_the_packages_helpers_may_be_used():
    source = "from minitransformer.kernels.runtime import dot_operand\n"
    source += MATMUL.replace("tl.dot(a, b)", "tl.dot(dot_operand(a), dot_operand(b))")
    answer = TritonAnswer(proxy_of("matmul_kernel", source))
    args = matmul_args(32, 16)
    expect_close(answer.launch((1,), args)["c"], args["a"].double() @ args["b"].double())
    narrow = dict.fromkeys("ab", torch.bfloat16)
    expect_tensor_cores(answer.compiles(args, dtypes=narrow))


def test_a_kernel_that_never_ends_is_stopped_and_the_next_runs():
    source = SOFTMAX.replace("    e = ", "    while N > 0:\n        x += 1\n    e = ")
    with pytest.raises(CheckFailed, match="raised"):
        check_softmax(source)
    check_softmax(SOFTMAX)


@pytest.mark.parametrize("value", [3, "text", None])
def test_an_answer_that_is_no_kernel_fails_in_words(value):
    with pytest.raises(CheckFailed, match=r"under @triton\.jit"):
        TritonAnswer(value)
    with pytest.raises(CheckFailed, match=r"under @triton\.jit"):
        TritonAnswer(proxy_of("f", "def f():\n    pass"))


def test_tensor_cores_and_float32_sums_are_read_from_the_compiled_kernel():
    answer = TritonAnswer(proxy_of("matmul_kernel", MATMUL))
    compiled = answer.compiles(matmul_args(128, 64), dtypes={"a": torch.bfloat16, "b": torch.bfloat16})
    expect_tensor_cores(compiled)
    expect_float32_sums(compiled)
    expect_no_spills(compiled)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("dtype=tl.float32)", "dtype=tl.bfloat16)"),
        ("acc += tl.dot(a, b)", "acc = (acc + tl.dot(a, b)).to(tl.bfloat16).to(tl.float32)"),
        ("acc += tl.dot(a, b)", "acc += tl.sum(a, axis=1)[:, None]"),
    ],
)
def test_sums_in_bfloat16_are_found(old, new):
    source = MATMUL.replace(old, new)
    if "bfloat16)" in new and "dtype" in new:
        source = source.replace("tl.dot(a, b)", "tl.dot(a, b).to(tl.bfloat16)")
    answer = TritonAnswer(proxy_of("matmul_kernel", source))
    compiled = answer.compiles(matmul_args(128, 64), dtypes=dict.fromkeys("abc", torch.bfloat16))
    with pytest.raises(CheckFailed, match="16 bits"):
        expect_float32_sums(compiled)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("tl.arange(0, BLOCK)", "tl.arange(0, K)", ["sm_90", "tl.arange(0, K)", "constexpr"]),
        ("tl.dot(a, b)", "tl.dot(a, b) * UNKNOWN", ["UNKNOWN"]),
    ],
)
def test_what_does_not_compile_fails_in_words(old, new, words):
    with pytest.raises(CheckFailed) as failed:
        TritonAnswer(proxy_of("matmul_kernel", MATMUL.replace(old, new))).compiles(matmul_args(64, 64))
    for word in words:
        assert word in str(failed.value)
    assert "\n" not in str(failed.value)


def test_a_tile_too_small_for_a_gpu_runs_here_but_does_not_compile():
    answer = TritonAnswer(proxy_of("matmul_kernel", MATMUL))
    args = matmul_args(16, 8)
    expect_close(answer.launch((1,), args)["c"], args["a"].double() @ args["b"].double())
    with pytest.raises(CheckFailed, match="below 16"):
        answer.compiles(args, dtypes=dict.fromkeys("ab", torch.float16))


def test_a_wrapper_is_called_with_tensors_in_poison():
    source = SOFTMAX + (
        "def softmax(x):\n"
        "    out = torch.empty(x.shape)\n"
        "    softmax_kernel[(len(x),)](x, out, x.stride(0), x.shape[1], triton.next_power_of_2(x.shape[1]))\n"
        "    return out\n"
    )
    x = torch.randn(4, 9)
    rows_apart = Input(x, padded_strides(x.shape, 4))
    for text, fails in [(source, False), (source.replace("x.stride(0)", "9"), True)]:
        answer = TritonAnswer(proxy_of("softmax_kernel", text), proxy_of("softmax", text))
        if fails:
            with pytest.raises(CheckFailed, match=r"launched by the wrapper, .* outside x_ptr"):
                answer.expect_wrapper([rows_apart], x.double().softmax(-1), "rows apart")
        else:
            answer.expect_wrapper([rows_apart], x.double().softmax(-1), "rows apart")


def test_a_write_outside_by_the_wrappers_kernel_is_found():
    source = "def bad(x):\n    behind = x.as_strided((1,), (1,), x.storage_offset() + x.numel())\n"
    source += "    behind.fill_(1.0)\n    return x.sum()\n"
    answer = TritonAnswer(proxy_of("softmax_kernel", SOFTMAX), proxy_of("bad", source))
    with pytest.raises(CheckFailed, match="element 6 of argument 0"):
        answer.expect_wrapper([torch.ones(2, 3)], torch.tensor(6.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int32, torch.int64])
def test_poison_lies_around_a_tensor_and_in_its_gaps(dtype):
    tensor = Poisoned((2, 3), dtype, (5, 1), torch.ones(2, 3).to(dtype))
    assert tensor.strays() == [] and not tensor.changed() and tensor.view.sum() == 6
    beside = tensor.view.as_strided((2, 5), (5, 1), tensor.view.storage_offset() - 1)
    beside[0, 0] = beside[1, 0] = 0
    assert tensor.strays() == [-1, 4]
    if dtype.is_floating_point:
        assert Poisoned((2, 3), dtype).view.isnan().all()


def test_a_wrapper_that_launches_too_many_programs_is_found_and_does_no_harm():
    source = SOFTMAX.replace(", mask=cols < N)", ")") + (
        "def softmax(x):\n"
        "    out = torch.empty(x.shape)\n"
        "    softmax_kernel[(len(x) + 50,)](x, out, x.stride(0), x.shape[1], x.shape[1])\n"
        "    return out\n"
    )
    answer = TritonAnswer(proxy_of("softmax_kernel", source), proxy_of("softmax", source))
    with pytest.raises(CheckFailed, match=r"Launched by the wrapper, program \(4, 0, 0\) .* outside"):
        answer.expect_wrapper([torch.randn(4, 16)], torch.zeros(4, 16))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"imports": {"compile_kernel": "minitransformer.kernels.compiling"}}, "no kernel of this package"),
        ({"imports": {"system": "os"}}, "no kernel of this package"),
        (
            {"imports": {"dot_operand": "minitransformer.kernels.runtime; import os"}},
            "no kernel of this package",
        ),
        ({"constants": {"A = 1; import os #": ["plain", 1]}}, "can't use the constant"),
        ({"constants": {"A": ["plain", [1]]}}, "can't use the constant"),
        ({"constants": {"A": ["dtype", "fp32); import os"]}}, "can't use the constant"),
        ({"functions": {"k": "def k(x):\n    pass\nimport os"}}, "one function"),
        ({"functions": {"k": "def k(x=open('/etc/passwd')):\n    pass"}}, "open is not defined"),
        ({"functions": {"k": "def k(x: print.__self__):\n    pass"}}, "__self__"),
        ({"functions": {"k": "def k(x):\n    (lambda: x)()"}}, "only named functions"),
        ({"functions": {"k": "def k(x):\n    '{0.x}'.format(x)"}}, ".format"),
        ({"functions": {"other": "def other(x):\n    pass"}}, "could not be read"),
        ({"functions": []}, "could not be read"),
    ],
)
def test_a_source_that_reaches_beyond_kernels_is_refused(change, words):
    read = {"kernel": "k", "functions": {"k": "def k(x):\n    pass"}, "constants": {}, "imports": {}}
    assert checked(read).parameters == ("x",)
    with pytest.raises(CheckFailed) as failed:
        checked(read | change)
    assert words in str(failed.value)
