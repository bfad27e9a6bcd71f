"""What lesson 05 builds in its cells gives what the package gives, on the same inputs."""

import math

import pytest
import torch
from lesson_code import code_cells, definitions

from minitransformer import kernels
from minitransformer.course.memory_trace import trace
from minitransformer.kernels.compiling import Job, compile_many
from minitransformer.kernels.runtime import INTERPRETED
from minitransformer.layers.norm import RMSNorm

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="kernels are compiled for a GPU in this process")


@pytest.fixture(scope="module")
def lesson() -> dict:
    """The lesson's functions and classes; nothing else of it is run."""
    return definitions(code_cells("05_triton_first_kernels"))


def block(n: int) -> int:
    return 2 ** math.ceil(math.log2(n)) if n > 1 else 1


@pytest.mark.parametrize(("M", "N"), [(3, 70), (1, 1), (4, 64), (2, 33)])
def test_softmax_of_rows_that_lie_apart(lesson, M, N):
    x = torch.randn(M, N + 5)[:, :N]
    assert torch.equal(lesson["softmax"](x), kernels.softmax(x))


@pytest.mark.parametrize(("M", "D"), [(3, 70), (1, 1), (4, 64)])
def test_norms_alone_and_with_the_residual(lesson, M, D):
    x, residual, weight = torch.randn(M, D + 3)[:, :D], torch.randn(M, D), torch.randn(D)
    out, total = torch.empty(M, D), torch.empty(M, D)
    lesson["rms_norm_kernel"][(M,)](x, weight, out, x.stride(0), D, 1e-5, BLOCK=block(D))
    assert torch.equal(out, kernels.rms_norm(x, weight, 1e-5))
    layer = RMSNorm(D, 1e-5)
    layer.weight.data = weight
    assert torch.allclose(out, layer(x), rtol=1e-5, atol=1e-6)
    strides = x.stride(0), residual.stride(0)
    lesson["add_rms_norm_kernel"][(M,)](x, residual, weight, out, total, *strides, D, 1e-5, BLOCK=block(D))
    norm, both = kernels.add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(out, norm) and torch.equal(total, both)


@pytest.mark.parametrize(("M", "N", "BLOCK"), [(3, 70, 32), (1, 1, 1), (2, 64, 64)])
def test_swiglu_of_the_halves_of_one_projection(lesson, M, N, BLOCK):
    gate, up = torch.randn(M, 2 * N).chunk(2, dim=-1)
    out = torch.empty(M, N)
    grid = (M * -(-N // BLOCK),)
    lesson["swiglu_kernel"][grid](gate, up, out, gate.stride(0), up.stride(0), N, BLOCK=BLOCK)
    assert torch.equal(out, kernels.swiglu(gate, up))


@pytest.mark.parametrize(("T", "H", "D"), [(3, 5, 16), (1, 1, 2), (4, 4, 24)])
def test_rope(lesson, T, H, D):
    x, angles = torch.randn(T, H, D), torch.rand(T, D // 2)
    out = torch.empty_like(x)
    lesson["rope_kernel"][(T,)](
        x, angles.cos(), angles.sin(), out, H, D // 2, BLOCK_H=block(H), BLOCK_D=block(D // 2)
    )
    cos, sin = angles.repeat(1, 2).cos(), angles.repeat(1, 2).sin()
    assert torch.allclose(out, kernels.rope(x[None], cos, sin)[0], rtol=1e-6, atol=1e-6)


def test_no_kernel_of_the_lesson_but_the_reckless_one_leaves_its_tensors(lesson):
    x = torch.randn(100)
    strays = {}
    for name in ("add_kernel", "reckless_kernel"):
        inputs = (x, x, torch.zeros(100), 100) if name == "add_kernel" else (x[:100], torch.zeros(100))
        made = trace(lesson[name], (2,), *inputs, BLOCK=64)
        strays[name] = sum(int(a.outside.sum()) for a in made.accesses)
    assert strays == {"add_kernel": 0, "reckless_kernel": 2 * 28}


def test_the_lessons_softmax_is_compiled_to_16_byte_loads_only_where_divisibility_is_promised(lesson):
    types = {"x_ptr": "*bf16:16", "out_ptr": "*bf16:16", "x_stride": "i32:16", "N": "i32:16"}
    unpromised = {name: kind.removesuffix(":16") for name, kind in types.items()}
    kernel = lesson["softmax_kernel"]
    promised, bare = compile_many([Job(kernel, t, {"BLOCK": 4096}) for t in (types, unpromised)])
    assert lesson["widest_load"](promised) == 16 and lesson["widest_load"](bare) == 2
    assert promised.spilled_bytes == 0
