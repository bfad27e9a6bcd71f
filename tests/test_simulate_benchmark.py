"""The comparison with the running engine: its logic, on the bundled model and moments of load. No times."""

import json

import numpy as np
import pytest
import torch

from benchmarks import simulator, simulator_steps
from benchmarks.serving_load import Lengths, mixed_load
from benchmarks.simulator import summary
from benchmarks.simulator_loads import Kind, as_load, asks_of, serve
from benchmarks.simulator_steps import StepLog, typical
from minitransformer import load_pretrained
from minitransformer.roofline import Device
from minitransformer.serving import LLM
from minitransformer.simulate import Efficiency, Replica, colocated, simulate
from minitransformer.simulate.calibrate import StepSample
from minitransformer.simulate.step_time import StepTime

DEVICE = Device("here", {"fp32": 1e11}, 1e10, 1e9)
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


def test_the_command_measures_and_writes_the_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(simulator, "KINDS", (SOON, Kind("at once", None, lengths=SOON.lengths)))
    monkeypatch.setattr(simulator_steps, "SHAPES", simulator_steps.SHAPES[2:4])
    monkeypatch.setattr(simulator_steps, "WAKES", 2)
    file, threads = tmp_path / "simulator.json", torch.get_num_threads()
    measure = simulator.measure
    monkeypatch.setattr(simulator, "measure", lambda *args, **kw: measure(*args, simulator.KINDS, **kw))
    assert simulator.main(["--rounds", "1", "--seconds", "0.5", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["simulator"]["loads"]
    assert [row["load"] for row in rows] == ["soon", "at once"] and all(row["requests"] >= 8 for row in rows)
    assert all(row["TTFT, ms"] > 0 and row["TPOT sim."] > 0 for row in rows)
    assert "The simulator against the engine" in capsys.readouterr().out
    assert torch.get_num_threads() == threads
