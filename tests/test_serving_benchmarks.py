"""The serving benchmark's logic, on a tiny model and small loads. No test here asserts a time."""

import json
import time

import pytest
import torch

from benchmarks import cpu, opponent, serving, serving_item, serving_report, serving_soak
from benchmarks.registry import Bench
from benchmarks.serving_load import Ask, Lengths, Trace, at_random, mixed_load, padded_memory_lost
from benchmarks.serving_waiting import engine_with_waiting, time_against_waiting
from benchmarks.serving_ways import MemoryLedger, Served, Stopwatch, serve_ours, serve_theirs
from minitransformer import ModelConfig, SamplingParams, generate
from minitransformer.roofline import Device, decode_cost
from minitransformer.serving import LLM
from minitransformer.serving.request import Request
from minitransformer.serving.scheduler import POLICIES

TINY = ModelConfig(97, 32, 48, 2, 4, 2, max_position_embeddings=160)
SIZES = serving.Sizes(
    requests=8,
    lengths=Lengths((2, 20), (2, 6)),
    rounds=1,
    budgets={"static": 48, "prefill_first": 48, "chunked": 24},
    most_seqs=6,
    block_size=4,
    rows_of_memory=3,
    their_batches=(2, 4),
    shared=8,
    shared_requests=4,
    shared_lengths=Lengths((2, 6), (2, 3)),
    waiting=(2, 5),
    running=2,
    steps=4,
)
LOAD = mixed_load(6, SIZES.lengths, TINY.vocab_size, seed=3)


@pytest.fixture(scope="module")
def pair():
    return opponent.make_pair(TINY, torch.float32)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def alone(model, ask: Ask) -> list[int]:
    return generate(model, torch.tensor([ask.prompt]), ask.new_tokens)[0, len(ask.prompt) :].tolist()


# --- loads and traces ----------------------------------------------------------------------------------


def test_a_load_has_lengths_within_its_ends_and_is_the_same_for_the_same_seed():
    load = mixed_load(400, Lengths((3, 9), (2, 4)), 97, seed=1, shared=5)
    assert {len(ask.prompt) for ask in load} == set(range(8, 15))
    assert {ask.new_tokens for ask in load} == {2, 3, 4}
    assert len({ask.prompt[:5] for ask in load}) == 1 and len({ask.prompt[5:8] for ask in load}) > 300
    assert all(0 <= token < 97 for ask in load for token in ask.prompt)
    assert load == mixed_load(400, Lengths((3, 9), (2, 4)), 97, seed=1, shared=5)
    assert load != mixed_load(400, Lengths((3, 9), (2, 4)), 97, seed=2, shared=5)


def test_random_arrivals_have_the_rate_that_was_asked_for_and_change_nothing_else():
    load = mixed_load(2000, SIZES.lengths, 97, seed=1)
    later = at_random(load, requests_per_s=50, seed=1)
    due = [ask.due_s for ask in later]
    assert due == sorted(due) and due[-1] == pytest.approx(2000 / 50, rel=0.1)
    gaps = torch.tensor(due).diff()
    assert gaps.std().item() == pytest.approx(gaps.mean().item(), rel=0.1)  # as exponential gaps have it
    assert [(a.prompt, a.new_tokens) for a in later] == [(a.prompt, a.new_tokens) for a in load]


def test_figures_of_a_trace_by_hand():
    trace = Trace(due_s=[0.0, 1.0, 2.0], token_s=[[1.0, 2.0, 5.0], [4.0], [3.0, 3.5]])
    assert trace.tokens_per_s == 6 / 5
    assert trace.ttft_s == [1.0, 3.0, 1.0]
    assert trace.tpot_s == [2.0, 0.5]  # an answer of one token has no time after the first
    assert trace.longest_gap_s == [3.0, 0.5]
    assert trace.figures()["TTFT p50, s"] == 1.0 and trace.figures()["gap p50, s"] == 1.75


def test_a_padded_batch_loses_what_padding_and_ended_rows_hold():
    # Two rows of 3 and 1 tokens, answers of 1 and 2: step 1 holds 2 * 4 for 4 + 2, step 2 holds 2 * 5 for 3.
    assert padded_memory_lost([Ask((1, 2, 3), 1), Ask((1,), 2)]) == (18, 18 - 9)
    assert padded_memory_lost([Ask((1, 2), 3), Ask((3, 4), 3)])[1] == 0


# --- ways ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_answers_as_generate_alone(pair, policy):
    served = serve_ours(pair[0], LOAD, **SIZES.engine(policy))
    assert served.answers == [alone(pair[0], ask) for ask in LOAD]
    assert [len(times) for times in served.trace.token_s] == [ask.new_tokens for ask in LOAD]
    assert all(times == sorted(times) for times in served.trace.token_s)


def test_the_transformers_library_answers_the_same_in_padded_batches(pair):
    served = serve_theirs(pair[1], LOAD, batch_size=4)
    assert served.answers == [alone(pair[0], ask) for ask in LOAD]
    assert [len(times) for times in served.trace.token_s] == [ask.new_tokens for ask in LOAD]
    first = [times[0] for times in served.trace.token_s]
    assert len(set(first[:4])) == len(set(first[4:])) == 1 and first[3] < first[4]
    held, lost = map(sum, zip(padded_memory_lost(LOAD[:4]), padded_memory_lost(LOAD[4:]), strict=True))
    assert served.lost == lost / held


@pytest.mark.parametrize("serve", ["ours", "theirs"])
def test_nobody_is_served_before_they_come(pair, serve):
    late = at_random(LOAD, requests_per_s=200, seed=5)
    if serve == "ours":
        served = serve_ours(pair[0], late, **SIZES.engine())
    else:
        served = serve_theirs(pair[1], late, batch_size=4)
    assert served.trace.due_s == [ask.due_s for ask in late]
    assert all(ttft > 0 for ttft in served.trace.ttft_s)
    assert served.answers == [alone(pair[0], ask) for ask in LOAD]


def test_the_ledger_counts_the_ends_of_last_blocks(pair):
    llm = LLM(pair[0], None, num_blocks=20, block_size=4, max_num_batched_tokens=32)
    ledger = MemoryLedger(llm.engine)
    llm.add_request([1] * 5, SamplingParams(max_tokens=9))
    llm.add_request([2] * 4, SamplingParams(max_tokens=9))
    llm.step()
    ledger.note()  # 5 + 1 tokens in two blocks, 4 + 1 in one: the last token has no place yet
    assert (ledger.held, ledger.lost) == (12, 2)
    llm.step()
    ledger.note()  # 7 tokens in two blocks, 6 in two
    assert (ledger.held - 12, ledger.lost - 2) == (16, 1 + 2)


def test_a_shared_block_is_held_once(pair):
    llm = LLM(pair[0], None, num_blocks=20, block_size=4, max_num_batched_tokens=32)
    for _ in range(2):
        llm.add_request([1] * 9, SamplingParams(max_tokens=9))
        llm.step()
    ledger = MemoryLedger(llm.engine)
    ledger.note()  # two blocks that both share, and one of their own for each, with 11 and 10 tokens in all
    assert (ledger.held, ledger.lost) == (16, 1 + 2)


def test_parts_of_a_step_are_within_the_step(pair):
    llm = LLM(pair[0], None, num_blocks=20, block_size=4, max_num_batched_tokens=32)
    watch = Stopwatch(llm.engine)
    llm.generate([[1, 2, 3]], SamplingParams(max_tokens=4))
    parts = dict(watch.seconds)
    step = parts.pop("step")
    assert len(parts) == 3 and all(0 < seconds < step for seconds in parts.values())
    assert sum(parts.values()) <= step


def test_a_slow_scheduler_is_seen_as_one(pair, monkeypatch):
    llm = LLM(pair[0], None, num_blocks=20, block_size=4, max_num_batched_tokens=32)
    schedule = llm.engine.scheduler.schedule
    monkeypatch.setattr(llm.engine.scheduler, "schedule", lambda: time.sleep(0.1) or schedule())
    watch = Stopwatch(llm.engine)
    llm.generate([[1, 2, 3]], SamplingParams(max_tokens=2))
    assert watch.seconds["scheduler and block manager"] >= 0.2


# --- figures -------------------------------------------------------------------------------------------


def run_of(token_s, answers=((1, 2),), lost=0.5, seconds=None) -> Served:
    return Served(Trace([0.0] * len(token_s), token_s), [list(a) for a in answers], lost, 0.0, seconds)


def test_speeds_are_pairwise_ratios_and_answers_are_compared():
    ours = [run_of([[1.0, 2.0]], seconds={"step": 4.0, "batch": 1.0}), run_of([[1.0, 4.0]])]
    theirs = [run_of([[1.0, 6.0]]), run_of([[1.0, 12.0]], answers=[(1, 3)])]
    found = serving.figures(ours[:1] * 2, theirs)
    assert found["times as fast"] == {"median": 4.5, "low": 3.0, "high": 6.0}
    assert found["equal answers"] == 1 and found["parts"] == {"batch": 0.25}
    assert serving.figures(theirs[1:], theirs[:1])["equal answers"] == 0
    assert serving.figures(ours[1:], theirs[1:])["seconds"] == 4.0


def test_the_batch_size_that_suits_transformers_is_chosen(monkeypatch):
    rate = {8: 2.0, 16: 4.0, 32: 3.0}
    monkeypatch.setattr(serving.opponent, "run_theirs", lambda *args: None)
    monkeypatch.setattr(serving, "serve_theirs", lambda m, load, size: run_of([[1 / rate[size]]]))
    assert serving.fastest_batch(None, LOAD, (8, 16, 32)) == 16


def test_everything_is_measured_and_joined_into_make_bench(tmp_path, capsys):
    file = tmp_path / "cpu.json"
    assert cpu.main(["--only", "serving", "--json", str(file)], TINY, TINY, SIZES) == 0
    found = json.loads(file.read_text())["serving"]
    for kind in ("all at once", "at random"):
        assert set(found[kind]) == {serving.THEIRS, *POLICIES}
        for way in found[kind].values():
            assert way["tokens per second"] > 0 and 0 <= way["cache lost"] < 1 and way["equal answers"] == 1
    assert 0 < found["shared prefix"]["hit rate"] <= found["shared prefix"]["at most"]
    assert [row["waiting"] for row in found["waiting"]] == [2, 5]
    assert found["their batch size"] in SIZES.their_batches
    out = capsys.readouterr().out
    assert "All at once" in out and "what was wanted" in out and out.count("prefill_first") >= 4


def test_the_command_for_serving_alone_writes_the_same_figures(tmp_path):
    file = tmp_path / "serving.json"
    assert serving.main(["--requests", "4", "--json", str(file)], TINY, SIZES) == 0
    record = json.loads(file.read_text())
    assert {"device", "date", "command", "versions", "threads"} <= set(record)
    assert record["serving"]["sizes"]["requests"] == 4


def test_a_target_missed_is_called_missed():
    def target(**wanted):
        return serving_report._target("figure", 0.5, **wanted)

    assert (target(at_least=0.5)["met"], target(at_least=0.51)["met"]) == ("yes", "NO")
    assert (target(at_most=0.5)["met"], target(at_most=0.49)["met"]) == ("yes", "NO")


def test_two_policies_are_compared_round_by_round():
    load = {
        "chunked": {"rounds": {"TPOT p99, s": [1.0, 2.0, 9.0]}},
        "prefill_first": {"rounds": {"TPOT p99, s": [2.0, 8.0, 9.0]}},
    }
    assert serving_report.chunked_over_prefill_first(load, "TPOT p99, s") == 0.5


# --- waiting requests, the GPU item, the soak ----------------------------------------------------------


def test_those_who_wait_find_a_full_cache_and_not_a_full_list(pair):
    scheduler = engine_with_waiting(pair[0], waiting=7, steps=5, running=3).engine.scheduler
    assert (len(scheduler.running), len(scheduler.waiting)) == (3, 7)
    assert len(scheduler.running) < scheduler.max_num_seqs
    rows = time_against_waiting(pair[0], (1, 7), steps=5, running=3)
    assert [row["waiting"] for row in rows] == [1, 7]
    with pytest.raises(ValueError, match="63 steps"):
        engine_with_waiting(pair[0], waiting=1, steps=63)


def test_the_engine_item_stands_beside_the_bandwidth():
    chip = Device("chip", {"fp32": 100.0}, bandwidth=10.0, memory_bytes=1e12)
    rows = serving_item.engine(Bench(torch.device("cpu"), small=True, limits=chip))
    assert [(row["attention"], row["batch"]) for row in rows] == [
        (attention, batch) for attention in ("triton", "sdpa") for batch in (1, 2)
    ]
    for row in rows:
        cost = decode_cost(
            serving_item.random_model(Bench(torch.device("cpu"), small=True))[0].config,
            row["batch"],
            row["context"],
            "float32",
        )
        assert row["tokens_per_second"] == row["batch"] / row["measured_s"]
        assert row["share_of_bandwidth"] == cost.bytes / row["measured_s"] / 10.0
        assert 0 < row["host_share"] < 1


def test_all_requests_of_the_item_decode_at_the_same_context(pair):
    llm = serving_item.prefilled(pair[0], batch=3, prompt=12, new_tokens=9)
    running = llm.engine.scheduler.running
    assert [(r.num_computed, r.num_output, r.num_uncomputed) for r in running] == [(12, 1, 1)] * 3


def test_a_soak_leaves_everything_as_it_was(capsys):
    found = serving_soak.soak(400, seed=1)
    assert serving_soak.failures(found) == [] and serving_soak.show(found) == 0
    assert found["requests"] == 400 and 10 < found["aborted"] < 120
    assert "400 requests" in capsys.readouterr().out


def test_a_soak_notices_blocks_and_requests_that_are_kept(monkeypatch):
    kept, deallocate = [], serving_soak.LLM.abort

    def forgetful(llm, request_id):
        request: Request = llm._answers[request_id].request
        if request.blocks:
            llm.engine.blocks.ref_counts[request.blocks[0]] += 1
            kept.append(request)
        return deallocate(llm, request_id)

    monkeypatch.setattr(serving_soak.LLM, "abort", forgetful)
    said = " ".join(serving_soak.failures(serving_soak.soak(120, seed=1)))
    assert "blocks are held" in said and f"{len(kept)} requests are still in memory (end)" in said


def test_a_soak_notices_memory_that_grows():
    held = [serving_soak.Held(0, 0, memory) for memory in (10**8, 10**8 + serving_soak.ALLOWED + 1)]
    (line,) = serving_soak.failures({"held": dict(zip(("early", "end"), held, strict=True))})
    assert "the process grew by 8.0 MB" in line
