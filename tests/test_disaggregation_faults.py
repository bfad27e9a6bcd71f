"""What breaks while requests run: each is answered once and right, every block comes back, nothing hangs.

Processes are killed and stopped in test_disaggregation_processes.py; here it is connections and messages,
in pools of threads that a test can reach into.
"""

import socket

import pytest
import torch
from disaggregation_pool import SECRET, SLOW, Threads, answer, case, cases, check_all_free, check_answers, run
from waiting import wait_for

from minitransformer.disaggregation.options import Link, RouterOptions
from minitransformer.disaggregation.staging import Staged

LONG = [case(i, 60, 5 + i, 12) for i in range(6)]  # prompts whose transfer over SLOW takes a while


def first_token_is_there(got: dict[int, list[int]]) -> bool:
    """Its transfer, over SLOW, has not ended yet."""
    return any(len(tokens) == 1 for tokens in got.values())


def links_of(threads: Threads) -> list:
    return [link for worker in threads.of_kind("prefill") for link in worker.connector._links.values()]


def test_a_control_connection_that_is_cut_in_mid_transfer():
    with Threads(1, 1, link=SLOW) as threads:

        def cut():
            for link in links_of(threads):
                link._channel._loop.call_soon_threadsafe(link._channel._transport.abort)

        check_answers(run(threads.llm, LONG, first_token_is_there, cut), LONG)
        check_all_free(threads.llm)


def test_a_data_connection_that_breaks_in_mid_transfer(monkeypatch):
    from minitransformer.disaggregation.pair import GlooPair

    send, broken = GlooPair.send, []

    def send_or_break(self, tensor):
        if tensor.dim() == 4 and len(broken) < 3 and tensor.shape[1] > 5:
            broken.append(tensor.shape)
            raise RuntimeError("the cable is cut")
        send(self, tensor)

    monkeypatch.setattr(GlooPair, "send", send_or_break)
    with Threads(2, 1) as threads:
        check_answers(run(threads.llm, LONG), LONG)
        check_all_free(threads.llm)
    assert len(broken) == 3


def test_a_layer_of_a_wrong_size_costs_an_attempt_and_no_more(monkeypatch):
    from minitransformer.disaggregation.sender import KVSender

    send, wrong = KVSender._send, []

    def send_wrong(self, layer):
        if self._plan and not wrong:
            wrong.append(layer)
            for link, slots in self._plan:
                link.put(Staged(self._cache.gather(layer, torch.cat((slots, slots))), None))
        else:
            send(self, layer)

    monkeypatch.setattr(KVSender, "_send", send_wrong)
    with Threads(1, 1, link=Link(timeout_s=2)) as threads:
        check_answers(run(threads.llm, LONG), LONG)
        check_all_free(threads.llm)
    assert wrong


def test_a_lost_connection_to_the_router_loses_no_request():
    asked = cases(12, max_tokens=20)
    with Threads(1, 2) as threads:

        def cut():
            for worker in (threads.of_kind("decode")[0], threads.of_kind("prefill")[0]):
                channel = worker.router
                channel._loop.call_soon_threadsafe(channel._transport.abort)

        check_answers(run(threads.llm, asked, lambda got: any(len(g) > 3 for g in got.values()), cut), asked)
        threads.wait_for_workers(3)
        check_all_free(threads.llm)


def test_a_client_that_loses_the_router_asks_again_from_where_it_was():
    asked = cases(8, max_tokens=20)
    with Threads(1, 1) as threads:

        def cut():
            channel = threads.llm.engine._channel
            channel._loop.call_soon_threadsafe(channel._transport.abort)

        check_answers(run(threads.llm, asked, lambda got: any(len(g) > 3 for g in got.values()), cut), asked)
        check_all_free(threads.llm)


@pytest.mark.parametrize("said", [b"\x00\x00\x00\x02{}", b"\xff" * 40, b"GET / HTTP/1.1\r\n\r\n", b""])
def test_rubbish_at_every_port_disturbs_nobody(said):
    asked = cases(8)
    with Threads(1, 1) as threads:

        def talk():
            addresses = [threads.bound.getsockname()]
            addresses += [worker._listening.getsockname() for worker in threads.of_kind("decode")]
            for address in addresses:
                with socket.create_connection(address, timeout=5) as stranger:
                    stranger.sendall(said)

        check_answers(run(threads.llm, asked, lambda got: any(got.values()), talk), asked)
        check_all_free(threads.llm)


def test_a_link_that_always_breaks_ends_in_prefill_where_the_decode_is(monkeypatch):
    from minitransformer.disaggregation.pair import GlooPair

    def broken(self, tensor):
        raise RuntimeError("no way through")

    monkeypatch.setattr(GlooPair, "recv", broken)
    with Threads(1, 1, link=Link(timeout_s=1)) as threads:
        check_answers(run(threads.llm, LONG[:2]), LONG[:2])
        check_all_free(threads.llm)
        assert threads.of_kind("decode")[0]._moved()[0] == 0


def test_fail_on_loss_ends_what_was_lost_with_the_reason_and_nothing_else(monkeypatch):
    with Threads(1, 1, link=SLOW, router=RouterOptions(local_below=30, on_loss="fail")) as threads:
        asked = [LONG[0], case(1, 0, 20, 12)]  # the second needs no transfer

        def cut():
            for link in links_of(threads):
                link._channel._loop.call_soon_threadsafe(link._channel._transport.abort)

        lost, fine = run(threads.llm, asked, lambda got: bool(got[0]), cut)
        assert lost.finish_reason == "error" and lost.error.startswith("decode-0: ")
        assert fine.error is None and fine.token_ids == answer(asked[1])
        check_all_free(threads.llm)


def test_a_worker_of_another_model_is_refused_and_ends(tmp_path):
    from small_models import small_model

    from minitransformer import save_pretrained
    from minitransformer.disaggregation.worker import CannotServe

    save_pretrained(small_model(seed=3, vocab_size=259, max_position_embeddings=256).double(), tmp_path)
    with Threads(1, 1) as threads:
        errors = []
        start = threads._start

        def caught(target):
            def run_it():
                try:
                    target()
                except CannotServe as error:
                    errors.append(str(error))

            start(run_it)

        threads._start = caught
        threads.begin("decode", model=str(tmp_path), name="odd")
        wait_for(lambda: errors)
        assert "odd does not fit into the pool: other weights" in errors[0]
        check_answers(run(threads.llm, cases(4)), cases(4))


def test_a_worker_without_the_secret_is_refused_and_ends():
    from minitransformer.disaggregation.decode_worker import DecodeWorker
    from minitransformer.disaggregation.worker import CannotServe

    with Threads(1, 1) as threads:
        stranger = DecodeWorker(threads.workers["decode-0"].options, b"another")
        with pytest.raises(CannotServe, match="does not know this run's secret"):
            stranger.run()
        stranger.network.close()
        check_answers(run(threads.llm, cases(4)), cases(4))
    assert SECRET != "another"
