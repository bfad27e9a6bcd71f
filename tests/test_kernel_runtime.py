"""How kernels run here: the choice of interpreter or GPU, the border checks, and the interpreter's flaw."""

import subprocess
import sys

import pytest
import torch
import triton
import triton.language as tl
from kernel_checks import DEVICE, error, randn

from minitransformer.kernels import runtime
from minitransformer.kernels.runtime import (
    INTERPRETED,
    as_rows,
    dot_operand,
    require_dtype,
    require_last_contiguous,
    require_shape,
    require_tensors,
    warps_for,
)

interpreted_only = pytest.mark.skipif(not INTERPRETED, reason="kernels run on the GPU here")


# --- the interpreter's bfloat16 ------------------------------------------------------------------------


@triton.jit
def product_kernel(a_ptr, b_ptr, out_ptr, SIZE: tl.constexpr, UPCAST: tl.constexpr):
    """out = a @ b, of one tile, with or without the upcast right after the load."""
    offsets = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    a, b = tl.load(a_ptr + offsets), tl.load(b_ptr + offsets)
    if UPCAST:
        a, b = dot_operand(a), dot_operand(b)
    tl.store(out_ptr + offsets, tl.dot(a, b))


def product_error(upcast: bool) -> float:
    a, b = (randn(16, 16, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty(16, 16, device=DEVICE)
    product_kernel[(1,)](a, b, out, SIZE=16, UPCAST=upcast)
    return error(out, a.double() @ b.double())


def test_upcast_products_of_bfloat16_are_right():
    assert product_error(upcast=True) < 1e-5


@interpreted_only
def test_the_interpreters_own_bfloat16_is_wrong_so_kernels_upcast():
    wrong = product_error(upcast=False)
    assert not wrong < 1, f"error {wrong}: Triton {triton.__version__} seems mended, then dot_operand can go"


# --- the choice ----------------------------------------------------------------------------------------


def in_a_new_process(code: str, interpret: str | None = None) -> subprocess.CompletedProcess:
    environment = {"TRITON_INTERPRET": interpret} if interpret else {}
    prefix = "import os; os.environ.pop('TRITON_INTERPRET', None)\n" + f"os.environ.update({environment})\n"
    return subprocess.run([sys.executable, "-c", prefix + code], capture_output=True, text=True, check=False)


@interpreted_only
def test_without_a_gpu_the_interpreter_is_chosen_before_triton_is_imported():
    done = in_a_new_process(
        "import sys, minitransformer\n"
        "assert 'triton' not in sys.modules, 'the engine alone needs no Triton'\n"
        "import minitransformer.kernels.runtime as r; assert r.INTERPRETED"
    )
    assert done.returncode == 0, done.stderr


@interpreted_only
def test_a_triton_imported_too_early_is_named(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match=r"Import minitransformer.kernels before triton"):
        runtime.choose_interpreter()


@pytest.mark.parametrize(("value", "interpreted"), [("1", True), ("true", True), ("0", False), ("", False)])
def test_the_variable_overrules_the_choice(value, interpreted, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", value)
    assert runtime.choose_interpreter() == interpreted


# --- the border ----------------------------------------------------------------------------------------


def test_tensors_must_be_on_one_device_that_kernels_run_on():
    require_tensors(a=randn(2), b=randn(3))
    with pytest.raises(TypeError, match=r"b must be a tensor, got float"):
        require_tensors(a=randn(2), b=1.0)
    with pytest.raises(ValueError, match=r"a is on .*, b on meta"):
        require_tensors(a=randn(2), b=torch.empty(2, device="meta"))


def test_dtypes_are_named():
    require_dtype(a=randn(2), b=randn(3))
    with pytest.raises(TypeError, match="b must have a's dtype float32, got float16"):
        require_dtype(a=randn(2), b=randn(3).half())
    with pytest.raises(TypeError, match="a must be int32, got float32"):
        require_dtype([torch.int32], a=randn(2))


def test_shapes_are_named():
    require_shape("q", randn(2, 8, 4), "B", 8, "D")
    for wrong in (randn(2, 7, 4), randn(2, 8)):
        with pytest.raises(ValueError, match=r"q must have shape \[B, 8, D\], got \["):
            require_shape("q", wrong, "B", 8, "D")


def test_rows_are_a_view_or_refused():
    x = randn(4, 3, 10)
    assert as_rows("x", x).shape == (12, 10)
    assert as_rows("x", x[..., :7]).stride() == (10, 1)
    assert as_rows("x", x[0, 0]).shape == (1, 10)
    assert as_rows("x", x[:0]).shape == (0, 10)
    with pytest.raises(ValueError, match=r"no rows of one stride: call x.contiguous"):
        as_rows("x", x[:, :2])
    with pytest.raises(ValueError, match="last dimension must be contiguous"):
        as_rows("x", x.transpose(1, 2))
    with pytest.raises(ValueError, match="at least one dimension"):
        as_rows("x", torch.tensor(1.0))
    require_last_contiguous(x=x[..., :1])  # a single column has no stride to speak of


def test_warps_grow_with_the_tile_between_limits():
    assert [warps_for(n) for n in (1, 512, 1024, 5000, 10**6)] == [1, 1, 2, 16, 16]
