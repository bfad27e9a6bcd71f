"""rms_norm, add_rms_norm, swiglu and rope: each number is read once and written once."""

import pytest
import torch
from kernel_checks import (
    FLOATS,
    apart,
    assert_close,
    assert_no_spills,
    check_borders,
    compile_launches,
    fresh_seed,
    randn,
    recorded_launches,
)

from minitransformer import ModelConfig
from minitransformer.kernels import (
    add_rms_norm,
    add_rms_norm_reference,
    rms_norm,
    rms_norm_reference,
    rope,
    rope_reference,
    swiglu,
    swiglu_reference,
)
from minitransformer.kernels.rms_norm import LONGEST_ROW
from minitransformer.layers import RMSNorm, RotaryEmbedding, apply_rope

SHAPES = [(1, 1), (67, 64), (2, 3, 257), (5000,)]
EPS = 1e-5


def exact_norm(x, weight):
    x, weight = x.double(), weight.double()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * weight


def angles(*shape: int, D: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [..., T, D], as RotaryEmbedding makes them."""
    half = 3 * randn(*shape, D // 2)
    both = torch.cat((half, half), dim=-1)
    return both.cos(), both.sin()


def exact_rope(x, cos, sin):
    x, cos, sin = x.double(), cos.double().unsqueeze(-2), sin.double().unsqueeze(-2)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


# --- norms ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rms_norm_is_that_of_float64(shape, dtype):
    fresh_seed()
    x, weight = 3 * randn(*shape, dtype=dtype), randn(shape[-1], dtype=dtype)
    out = check_borders(rms_norm, x, weight, EPS)
    assert out.dtype == dtype
    assert_close(out, exact_norm(x, weight))
    assert_close(rms_norm_reference(x, weight, EPS), exact_norm(x, weight))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_fused_norm_is_sum_then_norm(shape, dtype):
    fresh_seed()
    x, residual, weight = (
        randn(*shape, dtype=dtype),
        randn(*shape, dtype=dtype),
        randn(shape[-1], dtype=dtype),
    )
    out, total = check_borders(add_rms_norm, x, residual, weight, EPS)
    assert_close(total, x.double() + residual.double())
    assert_close(out, exact_norm(total, weight))
    expected = add_rms_norm_reference(x, residual, weight, EPS)
    assert_close(expected[1], x.double() + residual.double())
    assert_close(expected[0], exact_norm(expected[1], weight))


def test_norms_take_rows_that_lie_apart():
    x, residual, weight = randn(4, 100), randn(4, 100), randn(100)
    assert_close(check_borders(rms_norm, apart(x), weight, EPS), exact_norm(x, weight))
    out, total = check_borders(add_rms_norm, apart(x), apart(residual, 5), weight, EPS)
    assert_close(total, x.double() + residual.double())
    assert_close(out, exact_norm(x + residual, weight))


def test_the_norm_is_the_models():
    layer = RMSNorm(96, EPS)
    torch.nn.init.normal_(layer.weight)
    x = torch.randn(2, 5, 96)
    out = rms_norm(x.to(randn(1).device), layer.weight.detach().to(randn(1).device), EPS)
    torch.testing.assert_close(out.cpu(), layer(x).detach())


# --- swiglu --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (2, 4097)], ids=str)
def test_swiglu_is_that_of_float64(shape, dtype):
    fresh_seed()
    gate, up = 4 * randn(*shape, dtype=dtype), randn(*shape, dtype=dtype)
    expected = torch.nn.functional.silu(gate.double()) * up.double()
    assert_close(check_borders(swiglu, gate, up), expected)
    assert_close(swiglu_reference(gate, up), expected)


def test_halves_of_a_fused_projection_need_no_copy():
    gate, up = randn(2, 3, 200).chunk(2, dim=-1)
    assert not gate.is_contiguous()
    expected = torch.nn.functional.silu(gate.double()) * up.double()
    assert_close(check_borders(swiglu, gate, apart(up)), expected)


# --- rope ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("B", "T", "H", "D"), [(1, 1, 1, 2), (2, 3, 5, 64), (1, 4, 8, 96), (2, 2, 33, 256)])
def test_rope_is_that_of_float64(B, T, H, D, dtype):
    fresh_seed()
    x = randn(B, T, H, D, dtype=dtype)
    for cos, sin in (angles(T, D=D), angles(B, T, D=D)):
        expected = exact_rope(x, cos, sin)
        assert_close(check_borders(rope, x, cos, sin), expected)
        assert_close(rope_reference(x, cos, sin), expected)


def test_rope_is_the_models_on_the_layout_of_attention():
    config = ModelConfig(97, 64, 96, 1, 4, 2, rope_theta=100.0)
    cos, sin = (a.to(randn(1).device) for a in RotaryEmbedding(config)(torch.arange(7, 12)))
    q = randn(2, 4, 5, 16)  # [B, H, T, D]
    out = check_borders(rope, q.transpose(1, 2), cos, sin).transpose(1, 2)
    torch.testing.assert_close(out, apply_rope(q, cos, sin))


def test_angles_may_be_in_the_models_format():
    x, (cos, sin) = randn(1, 3, 2, 8, dtype=torch.bfloat16), angles(3, D=8)
    cos, sin = cos.bfloat16(), sin.bfloat16()
    assert_close(rope(x, cos, sin), exact_rope(x, cos, sin))


# --- the border ----------------------------------------------------------------------------------------


def test_nothing_comes_of_nothing():
    assert rms_norm(randn(0, 8), randn(8)).shape == (0, 8)
    assert [x.shape for x in add_rms_norm(randn(2, 0), randn(2, 0), randn(0))] == [(2, 0)] * 2
    assert swiglu(randn(3, 0), randn(3, 0)).shape == (3, 0)
    assert rope(randn(2, 0, 3, 4), *angles(0, D=4)).shape == (2, 0, 3, 4)


REFUSED = {
    "weight of another size": (
        lambda: rms_norm(randn(2, 8), randn(7)),
        r"weight must have shape \[8\], got \[7\]",
    ),
    "weight with gaps": (
        lambda: rms_norm(randn(2, 8), randn(16)[::2]),
        "weight's last dimension must be contig",
    ),
    "weight of another dtype": (lambda: rms_norm(randn(2, 8), randn(8).half()), "weight must have x's dtype"),
    "too long a row": (
        lambda: rms_norm(randn(1, LONGEST_ROW + 1), randn(LONGEST_ROW + 1)),
        "at most 32768 columns, got 32769",
    ),
    "rows of two strides": (
        lambda: rms_norm(randn(4, 3, 8)[:, :2], randn(8)),
        "x of shape .* has no rows of one",
    ),
    "residual of another shape": (
        lambda: add_rms_norm(randn(2, 8), randn(3, 8), randn(8)),
        r"residual must have shape \[2, 8\], got \[3, 8\]",
    ),
    "columns with gaps": (
        lambda: swiglu(randn(8, 4).T, randn(4, 8)),
        r"gate's last dimension .* call gate.contig",
    ),
    "up of another shape": (lambda: swiglu(randn(2, 8), randn(2, 9)), r"up must have shape \[2, 8\]"),
    "integers": (
        lambda: swiglu(randn(2, 8).int(), randn(2, 8).int()),
        "gate must be float32 or .*, got int32",
    ),
    "no heads": (lambda: rope(randn(2, 3, 8), *angles(3, D=8)), r"x must have shape \[B, T, H, D\]"),
    "odd head dim": (lambda: rope(randn(2, 3, 1, 7), *angles(3, D=8)), "must be even, got 7"),
    "angles of another length": (
        lambda: rope(randn(2, 3, 1, 8), *angles(4, D=8)),
        r"cos must have shape \[3, 8\], got \[4, 8\]",
    ),
    "angles of half the width": (
        lambda: rope(randn(1, 3, 1, 8), *angles(3, D=4)),
        r"cos must have shape \[3, 8\]",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_in_words(case):
    call, words = REFUSED[case]
    with pytest.raises((TypeError, ValueError), match=words):
        call()


# --- on GPUs that are not there ------------------------------------------------------------------------


def large(*shape: int, dtype=torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def test_all_compile_for_gpus_without_spills_and_move_16_bytes_at_a_time():
    with recorded_launches() as launches:
        rms_norm(large(8192, 4096), large(4096))
        add_rms_norm(large(8192, 4096), large(8192, 4096), large(4096))
        wide = large(64, 16384, dtype=torch.float32)
        add_rms_norm(wide, wide, large(16384, dtype=torch.float32))
        swiglu(large(4096, 14336), large(4096, 14336))
        rope(large(4, 2048, 32, 128), large(2048, 128), large(2048, 128))
        rms_norm(large(4, 2048, 32, 128), large(128))
        vectorized = 3 * len(launches)
        rms_norm(large(7, LONGEST_ROW), large(LONGEST_ROW))
        rope(large(1, 7, 33, 96, dtype=torch.float16), large(7, 96), large(7, 96))
    compiled = compile_launches(launches)
    assert_no_spills(compiled)
    assert all("ld.global.v4" in c.ptx and "st.global.v4" in c.ptx for c in compiled[:vectorized])
