"""The checks that kernels are tested with: each catches the mistake that it is there for."""

import pytest
import torch
import triton
import triton.language as tl
from kernel_checks import (
    DEVICE,
    apart,
    assert_close,
    check_borders,
    error,
    fresh_seed,
    poisoned,
    randn,
    recorded_launches,
)


@triton.jit
def double_kernel(x_ptr, out_ptr, reads, writes, BLOCK: tl.constexpr):
    """Doubles `writes` numbers of which it reads `reads`; the rest counts as zero."""
    i = tl.arange(0, BLOCK)
    tl.store(out_ptr + i, 2 * tl.load(x_ptr + i, mask=i < reads, other=0.0), mask=i < writes)


def double(x: torch.Tensor, reads: int, writes: int, shift: int = 0) -> torch.Tensor:
    """Twice x [10], by a kernel that reads and writes as it is told."""
    out = torch.empty(10, device=x.device)
    double_kernel[(1,)](x, out[shift:], reads, writes, BLOCK=32)
    return out


def test_a_kernel_that_stays_inside_passes():
    x = randn(10)
    assert torch.equal(check_borders(double, x, 10, 10), 2 * x)


@pytest.mark.parametrize(
    ("reads", "writes", "shift", "words"),
    [
        (10, 11, 0, "written outside an output"),
        (11, 11, 0, "written outside an output"),
        (10, 9, 0, "left a part of its output unwritten"),
        (9, 10, 1, "written outside an output"),
    ],
)
def test_a_missing_or_wrong_mask_is_caught(reads, writes, shift, words):
    with pytest.raises(AssertionError, match=words):
        check_borders(double, randn(10), reads, writes, shift)


@triton.jit
def total_kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out_ptr, tl.sum(tl.load(x_ptr + i, mask=i < n, other=0.0)))


def total(x: torch.Tensor, n: int) -> torch.Tensor:
    out = torch.empty(1, device=x.device)
    total_kernel[(1,)](x, out, n, BLOCK=32)
    return out


def test_a_read_outside_that_happens_to_pass_is_caught():
    x = torch.ones(40, device=DEVICE)[:10]
    assert total(x, 10).item() == 10
    assert check_borders(total, x, 10).item() == 10
    with pytest.raises(AssertionError, match="read outside an input"):
        check_borders(total, x, 11)


def test_poison_lies_before_behind_and_between_the_rows():
    x = randn(3, 5)
    for y in (poisoned(x), apart(x), poisoned(apart(x)), poisoned(x.T)):
        around = torch.as_strided(y, (y.untyped_storage().nbytes() // 4,), (1,), 0)
        assert around.isnan().sum() == len(around) - x.numel() > 0
        assert not y.isnan().any()
    assert torch.equal(poisoned(x.T), x.T) and torch.equal(apart(x), x)


def test_errors_are_relative_and_nan_is_never_close():
    x = torch.tensor([3.0, 4.0])
    assert error(x, x + torch.tensor([0.0, 1.0])) == pytest.approx(1 / 34**0.5)
    assert_close(x, x.double())
    for wrong in (x * 1.001, x * torch.nan):
        with pytest.raises(AssertionError, match=r"allowed 2.0e-06 in torch.float32"):
            assert_close(wrong, x)
    with pytest.raises(AssertionError, match=r"shape \[2\], expected \[1\]"):
        assert_close(x, x[:1])


def test_the_smallest_step_of_a_format_is_allowed_and_two_are_not():
    smallest = torch.tensor([2.0**-24], dtype=torch.float16)
    assert_close(smallest, torch.tensor([2.0**-24 * 1.9]))
    with pytest.raises(AssertionError, match=r"in torch.float16"):
        assert_close(smallest, torch.tensor([2.0**-24 * 3.0]))


def test_an_allocation_that_can_not_be_guarded_is_refused():
    with pytest.raises(AssertionError, match=r"not torch.empty_like"):
        check_borders(lambda x: torch.empty_like(x), randn(3))
    with pytest.raises(AssertionError, match="nothing was allocated"):
        check_borders(lambda x: x, randn(3))


def test_seeds_are_fresh_and_printed(capsys):
    first, second = fresh_seed(), fresh_seed()
    assert first != second and f"seed {second}" in capsys.readouterr().out
    a = torch.randn(3)
    torch.manual_seed(second)
    assert torch.equal(a, torch.randn(3))


def test_launches_are_noted_and_not_run():
    x = torch.empty(10, device="meta")
    with recorded_launches() as launches:
        double(x, 10, 9)
    (launch,) = launches
    assert launch.kernel is double_kernel and launch.grid == (1,) and launch.kwargs == {"BLOCK": 32}
    job = launch.job(80)
    assert job.arch == 80 and job.constexprs == {"BLOCK": 32} and job.signature["reads"] == "i32"
