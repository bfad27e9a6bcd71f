"""Other ways for keys and values than gloo, where they are there; and that both sides must go the same."""

import importlib.util
import threading

import pytest
import torch
from disaggregation_pool import Threads, cases, check_all_free, check_answers, folder, run
from torch.distributed import is_nccl_available
from transfer_sides import HOST, SECRET, Decode, Prefill

from minitransformer.disaggregation import __main__ as command
from minitransformer.disaggregation.options import Link
from minitransformer.disaggregation.pair import RECEIVER, Meeting, join, pair_class
from minitransformer.disaggregation.staging import Staged, side_stream

HAS_NIXL = importlib.util.find_spec("nixl") is not None
needs_nixl = pytest.mark.skipif(not HAS_NIXL, reason="not verified: the package nixl is not installed")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="not verified: there is no GPU")
needs_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="not verified: NCCL needs two GPUs")


def pair_of(transport: str, timeout_s: float = 10):
    """Both ends, in this process."""
    meeting, kind, ends = Meeting(HOST), pair_class(transport), []
    welcome = meeting.invite()
    thread = threading.Thread(target=lambda: ends.append(join(kind, welcome, HOST, SECRET, timeout_s)))
    thread.start()
    receiver = kind(meeting.store, welcome.prefix, RECEIVER, HOST, SECRET, timeout_s)
    thread.join(timeout_s)
    return ends[0], receiver


@pytest.mark.parametrize("transport", ["gloo", pytest.param("nixl", marks=needs_nixl)])
def test_what_is_sent_arrives_in_order(transport):
    sender, receiver = pair_of(transport)
    sent = [torch.randn(2, n, 2, 8, generator=torch.Generator().manual_seed(n)) for n in (1, 50_000, 7)]
    thread = threading.Thread(target=lambda: [sender.send(tensor) for tensor in sent])
    thread.start()
    for tensor in sent:
        got = torch.zeros_like(tensor)
        receiver.recv(got)
        assert torch.equal(got, tensor)
    thread.join(10)


@pytest.mark.parametrize("transport", ["gloo", pytest.param("nixl", marks=needs_nixl)])
def test_who_waits_for_nothing_gives_up(transport):
    _sender, receiver = pair_of(transport, timeout_s=2)
    with pytest.raises(RuntimeError):
        receiver.recv(torch.zeros(5))


@needs_nixl
def test_a_pool_over_nixl_answers_as_one_engine_does():
    with Threads(2, 1, link=Link(transport="nixl")) as threads:
        check_answers(run(threads.llm, cases(12)), cases(12))
        check_all_free(threads.llm)
        assert all(worker._moved()[0] > 0 for worker in threads.workers.values())


@needs_gpus
def test_a_pool_over_nccl_answers_as_one_engine_does():
    gpus = {"prefill_options": {"device": "cuda:0"}, "decode_options": {"device": "cuda:1"}}
    with Threads(1, 1, link=Link(transport="nccl"), **gpus) as threads:
        check_answers(run(threads.llm, cases(12)), cases(12))
        check_all_free(threads.llm)


@needs_gpu
def test_two_workers_share_a_gpu_through_pinned_memory():
    with Threads(1, 1, device="cuda") as threads:
        check_answers(run(threads.llm, cases(12)), cases(12))
        check_all_free(threads.llm)


@needs_gpu
def test_a_copy_to_the_host_is_there_when_it_is_asked_for():
    stream = side_stream(torch.device("cuda"), to_host=True)
    there = torch.randn(2, 1000, 8, 64, device="cuda")
    staged = [Staged(there * i, stream) for i in range(4)]
    for i, one in enumerate(staged):
        host = one.get()
        assert host.is_pinned() and torch.equal(host, (there * i).cpu())


def test_keys_of_a_cpu_are_sent_as_they_are():
    tensor = torch.randn(2, 3, 2, 8)
    assert side_stream(torch.device("cpu"), to_host=True) is None
    assert Staged(tensor, None).get() is tensor


@pytest.mark.skipif(is_nccl_available(), reason="not verified: this PyTorch has NCCL")
def test_a_transport_that_this_pytorch_lacks_is_named(capsys):
    assert command.main(["--model", folder(), "--prefill", "0", "--transport", "nccl"]) == 2
    assert "this PyTorch is built without NCCL" in capsys.readouterr().err


@pytest.mark.skipif(HAS_NIXL, reason="not verified: the package nixl is installed")
def test_a_transport_whose_package_is_missing_is_named():
    with pytest.raises(ValueError, match="transport='nixl' needs the package nixl"):
        pair_class("nixl")


def test_an_unknown_transport_is_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match="transport='tcp': choose one of gloo, nccl, nixl"):
        Link(transport="tcp")


def test_both_sides_must_go_the_same_way():
    decode = Decode()
    prefill = Prefill(decode, announced="nixl")
    prefill.compute((prefill.begin("r", 8), 8))
    ((what, _, reason, _),) = prefill.inbox.take(10)
    assert what == "closed" and "other transport: nixl against gloo" in reason
    for side in (decode, prefill):
        side.network.close()
