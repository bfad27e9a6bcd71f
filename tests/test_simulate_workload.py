"""Loads: what is drawn, what is read from a file, and what is refused."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from simulated import replica

from minitransformer.simulate import (
    AtOnce,
    Bursty,
    ClosedLoop,
    Constant,
    Empirical,
    LogNormal,
    OnOff,
    Poisson,
    Sessions,
    Trace,
    Uniform,
    Workload,
)
from minitransformer.simulate.request import jobs_of, request_for

MANY = 20_000


def drawn(lengths) -> np.ndarray:
    return lengths.draw(MANY, np.random.default_rng(0))


def test_lengths_are_as_they_say():
    assert set(drawn(Constant(7))) == {7}
    uniform = drawn(Uniform(3, 9))
    assert set(uniform) == set(range(3, 10)) and uniform.mean() == pytest.approx(6, rel=0.01)
    tail = drawn(LogNormal(100, 0.8, low=5, high=900))
    assert np.median(tail) == pytest.approx(100, rel=0.03) and (tail.min(), tail.max()) == (5, 900)
    assert np.log(drawn(LogNormal(1000, 0.5))).std() == pytest.approx(0.5, rel=0.02)
    seen = drawn(Empirical((2, 2, 2, 10)))
    assert set(seen) == {2, 10} and (seen == 2).mean() == pytest.approx(0.75, rel=0.02)


def test_arrivals_come_at_their_rate_and_as_bursty_as_they_say():
    for arrivals, cv in [(Poisson(4), 1), (Bursty(4, 1), 1), (Bursty(4, 3), 3), (Bursty(4, 0), 0)]:
        time_s = arrivals.draw(MANY, np.random.default_rng(0)).time_s
        gaps = np.diff(time_s)
        assert 1 / gaps.mean() == pytest.approx(4, rel=0.05)
        assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05, abs=1e-6)


def test_on_and_off_leaves_gaps():
    time_s = OnOff(50, on_s=2, off_s=3).draw(MANY, np.random.default_rng(0)).time_s
    assert (time_s % 5 < 2).all()
    assert Workload(OnOff(50, 2, 3), 1, 1, count=1).rate == pytest.approx(20)
    assert MANY / time_s[-1] == pytest.approx(20, rel=0.05)


def test_rates_share_their_random_numbers():
    slow = Workload(Poisson(2), Uniform(1, 99), LogNormal(40, 1), count=500)
    fast = slow.at_rate(8)
    assert fast.rate == 8
    one, other = slow.draw(5), fast.draw(5)
    np.testing.assert_allclose(one.time_s, 4 * other.time_s)
    np.testing.assert_array_equal(one.prompt_tokens, other.prompt_tokens)
    np.testing.assert_array_equal(one.output_tokens, other.output_tokens)


def test_a_closed_loop_follows_its_own_clients():
    load = Workload(ClosedLoop(3, 2.5), 5, 5, count=8).draw()
    assert load.after.tolist() == [-1, -1, -1, 0, 1, 2, 3, 4]
    assert load.time_s.tolist() == [0, 0, 0, 2.5, 2.5, 2.5, 2.5, 2.5]


def test_a_turn_repeats_what_was_said_before():
    sessions = Sessions(turns=3, think_s=1.5, system_tokens=100)
    load = Workload(Poisson(1), [10], [4], count=7, sessions=sessions).draw()
    assert load.prompt_tokens.tolist() == [110, 124, 138, 110, 124, 138, 110]
    assert load.after.tolist() == [-1, 0, 1, -1, 3, 4, -1]
    assert load.session.tolist() == [0, 0, 0, 1, 1, 1, 2]
    assert load.time_s[[1, 2, 4, 5]].tolist() == [1.5] * 4
    assert Workload(Poisson(2), 1, 1, count=7, sessions=sessions).rate == 6
    assert Workload(Poisson(2), 1, 1, count=7, sessions=sessions).at_rate(3).arrivals.rate == 1


def test_clients_of_a_closed_loop_can_hold_sessions():
    load = Workload(ClosedLoop(2, 9), 1, 1, count=6, sessions=Sessions(turns=2, think_s=1)).draw()
    assert load.after.tolist() == [-1, 0, -1, 2, 1, 4] and load.time_s.tolist() == [0, 1, 0, 1, 9, 1]


def test_only_what_is_equal_has_equal_names():
    load = Workload(Poisson(1), 10, 4, count=4, sessions=Sessions(turns=2, system_tokens=9)).draw()
    worker = SimpleNamespace(replica=replica())
    names = [list(request_for(job, 4, worker, 9).block_hashes) for job in jobs_of(load)]
    assert [len(n) for n in names] == [19 // 4, 33 // 4, 19 // 4, 33 // 4]
    assert names[1][: len(names[0])] == names[0]  # the next turn begins with the same text
    common = set(names[0]) & set(names[2])
    assert common == set(names[0][:2])  # the system prompt fills two blocks
    own = jobs_of(Workload(AtOnce(), 10, 4, count=3).draw())
    names = [name for job in own for name in request_for(job, 4, worker, 9).block_hashes]
    assert len(set(names)) == len(names) == 6


# --- files ----------------------------------------------------------------------------------------------


def trace(tmp_path, text: str) -> Trace:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    return Trace.read(path)


def test_a_trace_is_replayed_as_it_came(tmp_path):
    header = "arrival_s,prompt_tokens,output_tokens,session\n"
    read = trace(tmp_path, header + "12.5,30,4,b\n10,20,3,\n15,40,5,b\n13,9,9,a\n")
    load = read.draw()
    assert load.time_s.tolist() == [0, 2.5, 3, 5] and load.prompt_tokens.tolist() == [20, 30, 9, 40]
    assert load.output_tokens.tolist() == [3, 4, 9, 5] and load.session.tolist() == [-1, 0, 1, 0]
    assert read.rate == pytest.approx(3 / 5)
    assert read.at_rate(1.2).draw().time_s.tolist() == [0, 1.25, 1.5, 2.5]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("arrival_s,prompt\n1,2\n", "lacks prompt_tokens, output_tokens"),
        ("", "lacks arrival_s"),
        ("arrival_s,prompt_tokens,output_tokens\n", "no request"),
        ("arrival_s,prompt_tokens,output_tokens\n1,2,3\n2,x,3\n", "line 3.*'x'"),
        ("arrival_s,prompt_tokens,output_tokens\n1,2,0\n", "line 2.*output_tokens.*at least 1, got 0"),
        ("arrival_s,prompt_tokens,output_tokens\nnan,2,3\n", "line 2.*arrival_s"),
        ("arrival_s,prompt_tokens,output_tokens\n1,2\n", "line 2"),
    ],
)
def test_a_bad_trace_is_refused_by_line(tmp_path, text, reason):
    with pytest.raises(ValueError, match=reason):
        trace(tmp_path, text)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Poisson(-1), "rate must be a number above 0, got -1"),
        (lambda: Poisson(math.nan), "rate"),
        (lambda: Poisson(math.inf), "rate"),
        (lambda: Bursty(1, -0.5), "cv must be a number of 0 or more, got -0.5"),
        (lambda: OnOff(1, 0, 1), "on_s"),
        (lambda: ClosedLoop(0), "clients must be a whole number of at least 1, got 0"),
        (lambda: ClosedLoop(1, -1), "think_s"),
        (lambda: Constant(0), "tokens"),
        (lambda: Uniform(5, 4), "high must be a whole number of at least 5, got 4"),
        (lambda: LogNormal(0, 1), "median"),
        (lambda: Empirical(()), "at least one"),
        (lambda: Empirical((3, 0)), "smallest"),
        (lambda: Workload(Poisson(1), 1, 1, count=0), "count"),
        (lambda: Workload(Poisson(1), 0, 1, count=1), "tokens"),
        (lambda: Workload(ClosedLoop(1), 1, 1, count=1).at_rate(2), "no rate"),
        (lambda: Workload(Poisson(1), 1, 1, count=1).at_rate(0), "rate"),
        (lambda: Sessions(turns=0), "turns"),
        (lambda: Trace(()), "at least one request"),
        (lambda: Trace(((0.0, 1, 1, ""), (0.0, 1, 1, ""))).at_rate(2), "came at once"),
    ],
)
def test_what_cannot_be_is_refused(make, reason):
    with pytest.raises(ValueError, match=reason):
        make()
