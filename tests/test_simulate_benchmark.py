"""The comparison with the running engine: its logic, on the bundled model and moments of load. No times."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks import simulator, simulator_pool, simulator_steps
from benchmarks.serving_load import Ask, Lengths, Trace, mixed_load
from benchmarks.simulator import summary
from benchmarks.simulator_loads import Kind, as_load, asks_of, serve
from benchmarks.simulator_pool import PoolKind, Timed, cluster_of, decode_steps
from benchmarks.simulator_steps import StepLog, typical
from minitransformer import ModelConfig, load_pretrained
from minitransformer.roofline import Device
from minitransformer.serving import LLM
from minitransformer.simulate import Efficiency, Link, Replica, colocated, simulate
from minitransformer.simulate.calibrate import StepSample
from minitransformer.simulate.step_time import StepTime

DEVICE = Device("here", {"fp32": 1e11}, 1e10, 1e9)
TINY = ModelConfig(
    vocab_size=800,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
)
SOON = Kind("soon", 0.5, lengths=Lengths((4, 30), (2, 12)))


@pytest.fixture(scope="module")
def model():
    return load_pretrained()[0]


def machine(model, kind: Kind) -> Replica:
    return Replica(model.config, DEVICE, dtype="fp32", efficiency=Efficiency(step_s=1e-3), **kind.engine())


@pytest.mark.parametrize("scheduling", ["chunked", "prefill_first", "static"])
@pytest.mark.parametrize("shared", [0, 40])
def test_the_simulator_takes_the_same_steps_as_the_engine(model, scheduling, shared):
    """All at once, time decides nothing: every step must have the very same sizes."""
    kind = Kind("same", None, scheduling, 48, lengths=Lengths((1, 60), (1, 20)), shared=shared)
    asks = mixed_load(25, kind.lengths, model.config.vocab_size, seed=1, shared=shared)
    llm = LLM(model, None, **(kind.engine() | {"num_blocks": 40, "max_num_seqs": 7}))
    log = StepLog(llm)
    with torch.inference_mode():
        serve(llm, asks)
    spec = {"num_blocks": 40, "max_num_seqs": 7, "scheduling": scheduling, "max_num_batched_tokens": 48}
    seen, replica = [], Replica(model.config, DEVICE, dtype="fp32", **spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minitransformer.simulate.worker.StepTime", _watched(seen))
        report = simulate(as_load(asks, shared), colocated(replica), step_by_step=True)
    assert seen == [size for size in log.sizes if size[3]]
    assert report.steps == len(seen)


def _watched(seen: list):
    """`StepTime`, with a note of what it was asked."""

    class Watched(StepTime):
        def __call__(self, *size):
            if isinstance(size[1], int):  # the router asks, too, for mean sizes that are no step's
                seen.append(size)
            return super().__call__(*size)

    return Watched


def test_rates_are_shares_of_what_the_engine_serves_at_most(model):
    replica = machine(model, SOON)
    asks = asks_of(SOON, model, replica, seconds=0.5, seed=0)
    together = simulate(as_load(mixed_load(400, SOON.lengths, 800, 0), 0), colocated(replica))
    most = 400 / together.duration_s
    assert len(asks) / asks[-1].due_s == pytest.approx(0.5 * most, rel=0.25)
    assert len(asks) == pytest.approx(0.5 * 0.5 * most, rel=0.05)
    gaps = np.diff([a.due_s for a in asks_of(Kind("b", 0.5, cv=3.0), model, replica, 20.0, 0)])
    assert gaps.std() / gaps.mean() > 1.8


def test_a_typical_step_is_the_mean_without_what_disturbed_one():
    steps = [StepSample(4, 40 + i, 40 + i, 4, seconds) for i, seconds in enumerate((1.0, 1.2, 1.1, 90.0))]
    (found,) = typical({"a": steps[:2]}, {"a": steps[2:]})
    assert (found.keys, found.seconds) == (41.5, pytest.approx((1.0 + 1.2 + 1.1 + 3 * 1.15) / 4))


def test_errors_are_medians_of_each_rounds_own():
    def run(measured, simulated):
        same = {"load": "x", "scheduling": "chunked", "requests": 9}
        return [same | {"TTFT": (measured, simulated), "TPOT": (1.0, 1.1)}]

    (row,) = summary([run(1.0, 1.1), run(2.0, 2.0), run(3.0, 2.7)])
    assert row["TTFT error"] == 0 and row["TPOT error"] == pytest.approx(0.1) and row["within"]
    (row,) = summary([run(1.0, 1.2)])
    assert row["TTFT error"] == pytest.approx(0.2) and not row["within"]


def test_steps_of_a_decode_worker_are_read_off_the_times_of_tokens():
    """Both are decoded from 3.0 on, the second joins at 5.0, where a step shows a millisecond later for it;
    then nobody is there until 9.0."""
    asks = [Ask((1,) * 10, 4), Ask((1,) * 20, 3), Ask((1,) * 30, 3)]
    trace = Trace([0, 0, 7], [[1.0, 3.0, 4.0, 5.0], [2.0, 5.001, 6.5], [8.0, 9.0, 9.7]])
    first, both, last, alone = decode_steps(asks, trace)
    assert first == StepSample(1, 12, 12, 1, 1.0)  # the step to 3.0 may have begun at any time
    assert both == StepSample(2, 13 + 21, 13 + 21, 2, 1.0)
    assert last == StepSample(1, 22, 22, 1, 1.5)
    assert (alone.keys, alone.seconds) == (32, pytest.approx(0.7))


def test_each_worker_of_the_pool_is_fitted_to_its_own_steps():
    replica = Replica(TINY, DEVICE, dtype="fp32", num_blocks=64)
    slow = replace(replica, efficiency=Efficiency(flops=0.5, bandwidth=0.4, step_s=3e-3))
    quick = replace(replica, efficiency=Efficiency(flops=0.5, bandwidth=0.4, step_s=1e-3))
    prompts = [(n, n * (n + 1) // 2, n, 1) for n in (16, 64, 256, 512)]
    batches = [(n, 100 * n, 100 * n, n) for n in (1, 2, 4, 8, 16)]
    timed = Timed(
        {size: [StepSample(*size, StepTime(slow)(*size))] for size in prompts},
        {size: [StepSample(*size, StepTime(quick)(*size))] for size in batches},
        [0.02, 0.01, 0.5],
    )
    cluster = cluster_of(replica, Link(1e9), timed)
    prefill, decode = (StepTime(pool.replica) for pool in cluster.pools)
    assert prefill(128, 128 * 129 // 2, 128, 1) == pytest.approx(
        StepTime(slow)(128, 128 * 129 // 2, 128, 1), 0.02
    )
    assert decode(6, 900, 900, 6) == pytest.approx(StepTime(quick)(6, 900, 900, 6), 0.02)
    assert [pool.replica.efficiency.wake_s for pool in cluster.pools] == [0.02, 0.0]


def test_the_command_measures_and_writes_the_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(simulator, "KINDS", (SOON, Kind("at once", None, lengths=SOON.lengths)))
    monkeypatch.setattr(simulator_steps, "SHAPES", simulator_steps.SHAPES[2:4])
    monkeypatch.setattr(simulator_steps, "WAKES", 2)
    file, threads = tmp_path / "simulator.json", torch.get_num_threads()
    for name, small in {"MODEL": TINY, "PROMPTS": (8, 16, 24, 32), "CROWD": 4, "ALONE": 1}.items():
        monkeypatch.setattr(simulator_pool, name, small)
    pool = {"pool_kinds": (PoolKind("crowd", None, SOON.lengths),), "pool_requests": 8}
    measure = simulator.measure
    monkeypatch.setattr(
        simulator, "measure", lambda *args, **kw: measure(*args, simulator.KINDS, **kw, **pool)
    )
    assert simulator.main(["--rounds", "1", "--seconds", "0.5", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["simulator"]["loads"]
    assert [row["load"] for row in rows] == ["soon", "at once", "crowd"]
    assert rows[2]["scheduling"] == "1P1D" and all(row["requests"] >= 8 for row in rows)
    assert all(row["TTFT, ms"] > 0 and row["TPOT sim."] > 0 for row in rows)
    assert "The simulator against the engine" in capsys.readouterr().out
    assert torch.get_num_threads() == threads
