"""Compiling for GPUs that are not there."""

import re
from dataclasses import replace

import pytest
import torch
import triton
import triton.language as tl
from kernel_checks import INTERPRETED

from minitransformer.kernels import CompileError, compile_kernel, compiling
from minitransformer.kernels.compiling import SHARED_MEMORY_LIMIT, Compiled, Job, compile_many, job_of_launch
from minitransformer.kernels.runtime import dot_operand
from minitransformer.kernels.source_text import kernel_text

OFFSET = tl.constexpr(3)


@triton.jit
def offsets_of(N: tl.constexpr):
    return tl.arange(0, N)


@triton.jit
def shift_kernel(x_ptr, out_ptr, n, SIZE: tl.constexpr):
    i = offsets_of(SIZE)
    tl.store(out_ptr + i, tl.load(x_ptr + i, mask=i < n, other=0.0) + OFFSET, mask=i < n)


@triton.autotune([triton.Config({"SIZE": 32})], key=[])
@triton.jit
def tuned_kernel(x_ptr, SIZE: tl.constexpr):
    tl.store(x_ptr + offsets_of(SIZE), tl.cdiv(SIZE, 2))


@triton.jit
def square_kernel(a_ptr, out_ptr, N: tl.constexpr, KIND: tl.constexpr):
    i = tl.arange(0, N)
    at = i[:, None] * N + i[None, :]
    a = dot_operand(tl.load(a_ptr + at))
    tl.store(out_ptr + at, tl.dot(a, a).to(KIND))


TEXT = """
@triton.jit
def first(x_ptr, N: tl.constexpr):
    tl.store(x_ptr + tl.arange(0, N), 1)

@triton.jit
def second(x_ptr, N: tl.constexpr):
    print("anything")
    tl.store(x_ptr + tl.arange(0, N), missing)
"""
SQUARE = {"a_ptr": "*bf16:16", "out_ptr": "*bf16:16"}
JOBS = {
    **{arch: Job(square_kernel, SQUARE, {"N": 64, "KIND": tl.bfloat16}, arch) for arch in (80, 90, 100)},
    "shift": Job(shift_kernel, {"x_ptr": "*fp32:16", "out_ptr": "*fp32:16", "n": "i32:16"}, {"SIZE": 1024}),
    "unaligned": Job(shift_kernel, {"x_ptr": "*fp32", "out_ptr": "*fp32", "n": "i32"}, {"SIZE": 1024}),
    "tuned": Job(tuned_kernel, {"x_ptr": "*fp32"}, {"SIZE": 32}),
    "text": Job("import triton, triton.language as tl" + TEXT, {"x_ptr": "*i32"}, {"N": 64}, name="first"),
    "no name": Job("import triton, triton.language as tl" + TEXT, {"x_ptr": "*i32"}, {"N": 64}),
    "other name": Job(
        "import triton, triton.language as tl" + TEXT, {"x_ptr": "*i32"}, {"N": 64}, name="third"
    ),
    "no argument": Job(shift_kernel, {"x_ptr": "*fp32", "m": "i32"}, {"SIZE": 64}),
    "odd": Job(shift_kernel, {"x_ptr": "*fp32", "out_ptr": "*fp32", "n": "i32"}, {"SIZE": 63}),
    "syntax": Job("def f(:", {}),
    "spills": Job(square_kernel, SQUARE, {"N": 128, "KIND": tl.bfloat16}, 80, num_warps=2),
}


@pytest.fixture(scope="module")
def results():
    return dict(zip(JOBS, compile_many(list(JOBS.values())), strict=True))


@pytest.mark.parametrize(("arch", "name"), [(80, "mma.sync"), (90, "wgmma"), (100, "tcgen05")])
def test_each_architecture_has_its_tensor_core_instruction(results, arch, name):
    compiled = results[arch]
    assert isinstance(compiled, Compiled) and compiled.arch == arch
    assert next(iter(compiled.tensor_core_instructions)).startswith(name)
    assert f".target sm_{arch}" in compiled.ptx and "ttg" in compiled.ttgir
    assert 0 < compiled.registers <= 255 and compiled.spilled_bytes == 0
    assert compiled.shared_bytes >= 64 * 64 * 2 and compiled.fits


def test_a_kernel_brings_its_helpers_and_constants_and_needs_no_tensor_cores(results):
    assert results["shift"].tensor_core_instructions == {}
    assert results["shift"].shared_bytes == 0
    assert "0f40400000" in results["shift"].ptx  # 3.0


def test_promises_of_divisibility_decide_how_many_bytes_move_at_once(results):
    assert "ld.global.v4" in results["shift"].ptx
    assert "ld.global.v4" not in results["unaligned"].ptx


def test_what_triton_tunes_can_be_compiled_in_a_given_configuration(results):
    assert results["tuned"].name == "tuned_kernel"


def test_a_source_text_is_as_good_as_a_function(results):
    assert results["text"].name == "first"


@pytest.mark.parametrize(
    ("job", "words"),
    [
        ("no name", "the kernel does not compile for sm_90: .*missing"),
        ("other name", "no kernel third, only first, second"),
        ("no argument", "missing: n, out_ptr, unknown: m"),
        ("odd", "shift_kernel does not compile for sm_90: .*power of 2"),
        ("syntax", "invalid syntax"),
    ],
)
def test_what_does_not_compile_is_explained(results, job, words):
    assert isinstance(results[job], CompileError)
    assert re.search(words, str(results[job]), re.DOTALL), str(results[job])


def test_too_few_registers_show(results):
    assert results["spills"].spilled_bytes > 0


def test_what_finds_no_room_on_the_chip_does_not_fit(results):
    assert replace(results[90], shared_bytes=SHARED_MEMORY_LIMIT[90]).fits
    assert not replace(results[90], shared_bytes=SHARED_MEMORY_LIMIT[90] + 1).fits
    assert not replace(results[100], tensor_memory_columns=513).fits


def test_one_kernel_raises_what_many_return(results, monkeypatch):
    monkeypatch.setattr(compiling, "compile_many", lambda jobs: [results["odd"]])
    with pytest.raises(CompileError, match="shift_kernel does not compile"):
        compile_kernel(shift_kernel, {}, {"SIZE": 63})


def test_what_is_no_job_is_refused_in_words():
    with pytest.raises(ValueError, match="arch must be one of 75, 80, 86, 89, 90, 100, got 70"):
        compile_kernel(shift_kernel, {}, arch=70)
    with pytest.raises(TypeError, match=r"a kernel is a function under @triton.jit, got builtin_function"):
        compile_kernel(print, {})


def test_a_compilation_that_hangs_is_ended():
    with pytest.raises(TimeoutError, match="compiling 1 kernels was not done after 0 s"):
        compile_many([Job("while True: pass", {})], seconds=0.2)


def test_a_launch_tells_types_and_divisibility():
    x = torch.empty(65, dtype=torch.bfloat16, device="meta")
    job = job_of_launch(shift_kernel, x, torch.empty(66)[1:], 48, SIZE=64, arch=80, num_warps=2)
    assert job.signature == {"x_ptr": "*bf16:16", "out_ptr": "*fp32", "n": "i32:16"}
    assert job.constexprs == {"SIZE": 64} and (job.arch, job.num_warps) == (80, 2)
    kinds = [
        job_of_launch(shift_kernel, x, x, n, SIZE=1).signature["n"] for n in (1, 7, 2**40, 0.5, True, None)
    ]
    assert kinds == ["i32:1", "i32", "i64:16", "fp32", "i1", "none"]
    with pytest.raises(TypeError, match="n: a kernel takes tensors and numbers, got str"):
        job_of_launch(shift_kernel, x, x, "seven", SIZE=1)


@pytest.mark.skipif(not INTERPRETED, reason="kernels run on the GPU here")
def test_the_text_for_compiling_upcasts_nothing():
    text = kernel_text(square_kernel)
    assert "UPCAST = tl.constexpr(False)" in text
    assert text.index("def dot_operand") < text.index("def square_kernel")
