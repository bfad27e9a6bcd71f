"""softmax: through the interpreter here, on the GPU where there is one."""

import pytest
import torch
from kernel_checks import (
    DEVICE,
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

from minitransformer.kernels.softmax import LONGEST_ROW, softmax, softmax_reference

SHAPES = [(1, 1), (3, 64), (2, 1000), (5, 257), (2, LONGEST_ROW + 77)]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_softmax_is_that_of_float64(shape, dtype):
    fresh_seed()
    x = 3 * randn(*shape, dtype=dtype)
    out = check_borders(softmax, x)
    assert out.dtype == dtype and out.shape == x.shape
    assert_close(out, x.double().softmax(-1))
    assert_close(softmax_reference(x), x.double().softmax(-1))


def test_rows_may_lie_apart():
    x = randn(4, 100)
    torch.testing.assert_close(check_borders(softmax, apart(x)), x.softmax(-1))


@pytest.mark.parametrize("N", [50, LONGEST_ROW + 1])
def test_large_and_hidden_scores_are_no_trouble(N):
    x = 1e4 * randn(2, N)
    x[:, ::2] = -torch.inf
    out = softmax(x)
    assert not out.isnan().any() and (out[:, ::2] == 0).all()
    torch.testing.assert_close(out.sum(-1), torch.ones(2, device=DEVICE))


def test_nothing_comes_of_nothing():
    assert softmax(randn(0, 8)).shape == (0, 8)
    assert softmax(randn(8, 0)).shape == (8, 0)


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        (randn(2, 3, 4), ValueError, r"x must have shape \[M, N\], got \[2, 3, 4\]"),
        (randn(4, 6).T, ValueError, r"stride 1\), got stride 6 .* call x.contiguous"),
        (randn(2, 3).double(), TypeError, "x must be float32 or bfloat16 or float16, got float64"),
        ([[1.0]], TypeError, "x must be a tensor, got list"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(x, error, words):
    with pytest.raises(error, match=words):
        softmax(x)


def test_it_compiles_for_gpus_without_spills_and_moves_16_bytes_at_a_time():
    with recorded_launches() as launches:
        for N, dtype in [
            (4096, torch.bfloat16),
            (LONGEST_ROW, torch.float32),
            (100_000, torch.bfloat16),
            (77, torch.float32),
        ]:
            softmax(torch.empty(64, N, dtype=dtype, device="meta"))
    compiled = compile_launches(launches)
    assert_no_spills(compiled)
    assert all("ld.global.v4" in c.ptx and "st.global.v4" in c.ptx for c in compiled[:3])
