"""Prefill here, decode there, and still the tokens that a request gets alone: pools of threads."""

import threading
import time

import pytest
from disaggregation_pool import (
    MODEL,
    SECRET,
    SLOW,
    TOKENIZER,
    Case,
    Threads,
    answer,
    case,
    cases,
    check_all_free,
    check_answers,
    folder,
    run,
)
from waiting import wait_for

from minitransformer import SamplingParams, stream_text
from minitransformer.disaggregation.client import RemoteLLM
from minitransformer.disaggregation.options import Link, RouterOptions

BYTES_A_TOKEN = 2 * MODEL.config.num_hidden_layers * MODEL.config.kv_size * 8


@pytest.fixture(scope="module")
def pool():
    """2P2D, for tests that leave it as it was."""
    with Threads(2, 2) as threads:
        yield threads


@pytest.mark.parametrize(("prefill", "decode"), [(1, 1), (2, 1), (1, 2), (0, 1)])
def test_every_request_gets_the_tokens_it_gets_alone(prefill, decode):
    with Threads(prefill, decode) as threads:
        for _ in range(2):  # the second time most of it is cached
            check_answers(run(threads.llm, cases(16)), cases(16))
        check_all_free(threads.llm)
        moved = [worker._moved()[0] for worker in threads.workers.values()]
        assert all(moved) if prefill else not any(moved)


def test_two_of_each_share_the_work(pool):
    check_answers(run(pool.llm, cases(24)), cases(24))
    check_all_free(pool.llm)
    assert all(worker._moved()[0] > 0 for worker in pool.workers.values())


@pytest.mark.parametrize(
    "options",
    [
        {"prefill_options": {"block_size": 3}, "decode_options": {"block_size": 5}},
        {
            "prefill_options": {"block_size": 16, "num_blocks": 6},
            "decode_options": {"block_size": 1, "num_blocks": 150},
        },
        {"prefix_caching": False},
        {"scheduling": "prefill_first"},
        {"link": Link(layerwise=False)},
        {"link": Link(latency_s=0.01)},
    ],
    ids=lambda o: "-".join(o),
)
def test_whatever_the_workers_are_like(options):
    with Threads(1, 1, **options) as threads:
        for _ in range(2):
            check_answers(run(threads.llm, cases(10)), cases(10))
        check_all_free(threads.llm)


@pytest.mark.parametrize("num_blocks", [20, 24, 33])
def test_small_caches_preempt_and_lose_nothing(num_blocks):
    sizes = {"prefill_options": {"num_blocks": 20}, "decode_options": {"num_blocks": num_blocks}}
    asked = cases(14, max_tokens=8)
    with Threads(1, 1, **sizes) as threads:
        preempted, decode = [], threads.of_kind("decode")[0].engine
        finish = decode.finish
        decode.finish = lambda request, reason: (
            preempted.append(request.num_preemptions),
            finish(request, reason),
        )
        check_answers(run(threads.llm, asked), asked)
        check_all_free(threads.llm)
    assert num_blocks > 20 or sum(preempted) > 0


def test_bytes_that_travel_are_those_of_the_formula():
    asked = [case(i, 0, 20 + i, 4) for i in range(4)]
    with Threads(1, 1) as threads:
        check_answers(run(threads.llm, asked), asked)
        expected = sum(len(one.prompt) for one in asked) * BYTES_A_TOKEN
        check_all_free(threads.llm)
        assert [worker._moved()[0] for worker in threads.workers.values()] == [expected] * 2
        # Again: all full blocks are cached at the decode worker, and what is left is computed there.
        check_answers(run(threads.llm, asked), asked)
        assert [worker._moved()[0] for worker in threads.workers.values()] == [expected] * 2


def test_only_what_the_decode_worker_lacks_travels():
    first = case(0, 40, 0, 4)
    longer = Case((*first.prompt, *range(100, 120)), first.sampling)
    with Threads(1, 1) as threads:
        check_answers(run(threads.llm, [first]), [first])
        before = threads.of_kind("prefill")[0]._moved()[0]
        (output,) = run(threads.llm, [longer])
        assert output.token_ids == answer(longer) and output.cached_tokens == 40
        assert threads.of_kind("prefill")[0]._moved()[0] - before == 20 * BYTES_A_TOKEN


def test_what_the_prefill_worker_has_cached_travels_too():
    with Threads(1, 2) as threads:
        one = case(0, 40, 3, 4)
        asked = [one] * 2  # to both decode workers, in turn
        for again in asked:
            check_answers(run(threads.llm, [again]), [again])
            for member in threads.server.router.pool.members.values():
                member.turn = 0 if member.load else member.turn
            threads.server.router.pool._affinity["decode"]._owner.clear()
        received = [worker._moved()[0] for worker in threads.of_kind("decode")]
        assert received == [43 * BYTES_A_TOKEN] * 2
        assert threads.of_kind("prefill")[0].engine.blocks.prefix_cache.num_idle >= 10


def test_few_uncached_tokens_are_computed_where_they_are_needed():
    with Threads(1, 1, router=RouterOptions(local_below=30)) as threads:
        short, long = case(0, 0, 29, 4), case(1, 0, 30, 4)
        (output,) = run(threads.llm, [short])
        assert output.token_ids == answer(short) and set(output.workers.values()) == {"decode-0"}
        assert threads.of_kind("prefill")[0]._moved()[0] == 0
        check_answers(run(threads.llm, [long]), [long])
        assert threads.of_kind("prefill")[0]._moved()[0] == 30 * BYTES_A_TOKEN


def test_texts_stop_strings_and_streams(pool):
    prompts = ["the bear", "a house, and a bear", "the bear is", "x"]
    params = [SamplingParams(1.0, seed=i, max_tokens=20) for i in range(4)]
    texts = ["".join(stream_text(MODEL, TOKENIZER, *one)) for one in zip(prompts, params, strict=True)]
    outputs = pool.llm.generate(prompts, params)
    assert [output.text for output in outputs] == texts
    stop = next(text[5:7] for text in texts if len(text) > 7 and text[5:7] not in text[:6])
    at = next(i for i, text in enumerate(texts) if stop in text)
    sampling = SamplingParams(1.0, seed=at, max_tokens=20, stop=stop)
    (output,) = pool.llm.generate([prompts[at]], sampling)
    assert output.text == texts[at][: texts[at].index(stop)] and output.finish_reason == "stop"
    assert output.stages["decode"] >= 0
    check_all_free(pool.llm)


def test_aborted_requests_leave_both_sides(pool):
    asked = cases(12, max_tokens=30)
    outputs = run(pool.llm, asked, lambda got: sum(map(bool, got.values())) >= 3, aborts=(0, 2, 4, 7, 11))
    for i, one in enumerate(asked):
        assert outputs[i] is None or outputs[i].token_ids == answer(one)
    assert sum(output is None for output in outputs) >= 3
    check_all_free(pool.llm)


def test_an_abort_while_keys_are_on_their_way():
    asked = [case(0, 60, 9, 20), case(1, 0, 30, 5)]
    with Threads(1, 1, link=SLOW) as threads:
        # The first token is there before the transfer has ended.
        outputs = run(threads.llm, asked, lambda got: bool(got[0]), aborts=(0,))
        assert outputs[0] is None and outputs[1].token_ids == answer(asked[1])
        check_all_free(threads.llm)


def test_stages_tell_where_the_time_went():
    one = case(0, 60, 9, 5)
    with Threads(1, 1, link=SLOW) as threads:
        (output,) = run(threads.llm, [one])
        stages = output.stages
        assert set(stages) == {"queued", "prefill", "first_token", "transfer", "decode", "receiving"}
        assert all(seconds >= 0 for seconds in stages.values())
        assert stages["receiving"] > 0 and stages["transfer"] > 0  # how long depends on who else runs here
        assert output.workers == {"prefill": "prefill-1", "decode": "decode-0"}
        to_first = stages["queued"] + stages["prefill"] + stages["first_token"]
        assert to_first <= output.ttft_s  # no transfer is in it, and the client's side comes on top


def test_a_prompt_is_computed_while_the_step_that_made_room_for_it_goes_on():
    with Threads(1, 1) as threads:
        (decode,), (prefill,) = threads.of_kind("decode"), threads.of_kind("prefill")
        asked, in_time = threading.Event(), []
        add, run_step = prefill.engine.add, decode.engine._run
        prefill.engine.add = lambda request: (add(request), asked.set())

        def step_that_waits(rows):
            if decode.engine.scheduler.loading:  # room was made just now, and somebody else decodes
                in_time.append(asked.wait(10))
            return run_step(rows)

        run(threads.llm, [case(0, 40, 5, 2)])
        asked.clear()
        decode.engine._run = step_that_waits
        pair = [case(1, 0, 3, 40), case(2, 40, 9, 4)]  # the first is decoded where it came, from the start
        outputs = run(threads.llm, pair)
        assert [output.token_ids for output in outputs] == [answer(one) for one in pair]
        assert in_time and all(in_time)


def test_a_job_that_waits_for_the_end_of_a_step_counts_as_queued():
    pair, step_s = [case(0, 60, 9, 2), case(1, 60, 9, 2)], 0.4
    with Threads(1, 1) as threads:
        (prefill,) = threads.of_kind("prefill")
        run_step = prefill.engine._run
        prefill.engine._run = lambda rows: (time.sleep(step_s), run_step(rows))[1]
        outputs = run(threads.llm, pair)
        assert [output.token_ids for output in outputs] == [answer(one) for one in pair]
        later = max(output.stages["queued"] for output in outputs)
        assert later > step_s  # three steps of the other's come first
        assert max(output.stages["first_token"] for output in outputs) < step_s / 2


def test_times_of_requests_are_told_by_a_colocated_engine_too():
    from minitransformer.serving import LLM

    llm = LLM(MODEL, None, num_blocks=60, block_size=4, max_num_batched_tokens=24)
    (output,) = llm.generate([[1, 2, 3]], SamplingParams(max_tokens=4))
    assert set(output.stages) == {"queued", "prefill", "decode"}
    assert abs(output.stages["queued"] + output.stages["prefill"] - output.ttft_s) < 1e-6


def test_a_request_that_never_fits_is_refused_before_it_is_sent(pool):
    with pytest.raises(ValueError, match="230 tokens of prompt and 20 new ones pass the 241"):
        pool.llm.add_request([1] * 230, SamplingParams(max_tokens=20))
    with pytest.raises(ValueError, match="the vocabulary has 259"):
        pool.llm.add_request([259])
    assert not pool.llm.has_unfinished()


def test_workers_join_and_leave_while_it_runs():
    asked = cases(24, max_tokens=25)
    with Threads(1, 1) as threads:

        def change():
            threads.begin("prefill")
            threads.begin("decode")
            threads.llm.remove_worker("decode-0")
            threads.llm.remove_worker("prefill-1")

        check_answers(
            run(threads.llm, asked, lambda got: any(len(g) > 4 for g in got.values()), change), asked
        )
        wait_for(lambda: threads.llm.engine.tend(0.05) or len(threads.llm.workers()) == 2)
        check_answers(run(threads.llm, asked[:6]), asked[:6])
        check_all_free(threads.llm)
        assert {worker.name for worker in threads.llm.workers()} == {"prefill-2", "decode-3"}


def test_a_second_client_shares_the_pool(pool):
    with RemoteLLM(folder(), pool.bound.getsockname, SECRET.encode()) as other:
        wait_for(lambda: other.engine.tend(0.05) or other.engine.max_len > 0)
        asked = cases(6)
        ids = [pool.llm.add_request(list(one.prompt), one.sampling) for one in asked]
        check_answers(run(other, asked), asked)
        done = {}
        while pool.llm.has_unfinished():
            done |= {o.request_id: o for o in pool.llm.step() if o.finished}
        check_answers([done[i] for i in ids], asked)
    check_all_free(pool.llm)


def test_removing_a_worker_that_is_not_there_names_those_that_are(pool):
    with pytest.raises(ValueError, match="there is no worker 'x'"):
        pool.llm.remove_worker("x")
