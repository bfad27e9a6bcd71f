"""Keys and values from one cache to another, by threads in this process: what arrives, what is refused."""

import threading
import time
from types import SimpleNamespace

import psutil
import pytest
import torch
from router_pool import spec
from small_models import random_ids, small_model
from transfer_sides import HOST, MODEL, SECRET, Decode, Prefill, gathered
from waiting import wait_for

from minitransformer.disaggregation import outgoing
from minitransformer.disaggregation.fingerprint import difference, fingerprint
from minitransformer.disaggregation.messages import Hello, Job, Transfer, Welcome
from minitransformer.disaggregation.network import Inbox, Network
from minitransformer.disaggregation.options import Link, Liveness
from minitransformer.disaggregation.outgoing import Pacer
from minitransformer.disaggregation.pair import RECEIVER, SENDER, GlooPair, Meeting, Pair, join
from minitransformer.disaggregation.records import Part
from minitransformer.disaggregation.staging import Staged
from minitransformer.paged_cache import PagedKVCache


@pytest.fixture
def close():
    """Ends what a test has begun."""
    begun = []
    yield lambda *sides: begun.extend(sides) or (sides if len(sides) > 1 else sides[0])
    for side in begun:
        side.network.close()


@pytest.mark.parametrize("layerwise", [True, False])
@pytest.mark.parametrize(("there", "here"), [(4, 4), (3, 5), (16, 1)])
def test_what_was_computed_arrives_whatever_the_block_sizes(close, layerwise, there, here):
    decode = close(Decode(block_size=here))
    prefill = close(Prefill(decode, block_size=there, link=Link(layerwise=layerwise)))
    asked = [(f"r{i}", n) for i, n in enumerate((1, 7, 20))]
    reserved = [decode.reserve(*one) for one in asked]
    begun = [prefill.begin(*one) for one in asked]
    prefill.compute((begun[0], 1), (begun[1], 4))  # a prompt in two chunks, beside others
    prefill.compute((begun[1], 3), (begun[2], 20))
    for i, request in enumerate(begun):
        prefill.hand_over(request, 50 + i)
    finished = {}
    wait_for(lambda: finished.update(decode.receiver.get_finished()) or len(finished) == 3, 10)
    assert finished == dict(zip(reserved, (50, 51, 52), strict=True))
    for request, sent in zip(reserved, begun, strict=True):
        assert torch.equal(decode.tokens_of(request), gathered(prefill.cache, sent))


def test_bytes_are_those_of_the_formula_on_both_sides(close):
    decode = close(Decode())
    prefill = close(Prefill(decode))
    decode.reserve("r", 20)
    prefill.compute((prefill.begin("r", 20), 20))
    c = MODEL.config
    expected = 20 * 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim * 4
    wait_for(lambda: decode.receiver.bytes_received >= expected, 10)
    wait_for(lambda: prefill.sender.bytes_sent >= expected, 10)
    assert prefill.sender.bytes_sent == decode.receiver.bytes_received == expected


def test_only_tokens_that_the_other_side_lacks_travel_cached_ones_here_too(close):
    decode = close(Decode())
    prefill = close(Prefill(decode))
    request = decode.reserve("r", 20)
    request_there = prefill.begin("r", 20, first=0)
    prefill.sender.forget(prefill.sender.of(request_there))
    # The decode worker has 8 tokens, the prefill worker finds 12 in its prefix cache and computes 8.
    decode.receiver._loading["r", 0].next = 8
    job = Job("r", 0, spec(tuple(range(1, 21)), 4), 8, "decode-0", *decode.address)
    prefill.sender.add(request_there, job, 0.0)
    request_there.num_computed = 12
    prefill.compute((request_there, 8))
    prefill.hand_over(request_there, 5)
    finished = []
    wait_for(lambda: finished.extend(decode.receiver.get_finished()) or finished, 10)
    c = MODEL.config
    assert prefill.sender.bytes_sent == 12 * 2 * c.num_hidden_layers * c.kv_size * 4
    here, there = decode.tokens_of(request), gathered(prefill.cache, request_there)
    assert torch.equal(here[:, :, 8:], there[:, :, 8:]) and not here[:, :, :8].any()


def test_what_was_sent_before_a_preemption_is_not_sent_again(close):
    decode = close(Decode())
    prefill = close(Prefill(decode))
    decode.reserve("r", 12)
    request = prefill.begin("r", 12)
    prefill.compute((request, 8))
    prefill.blocks.deallocate(request)
    request.preempt()
    assert prefill.blocks.allocate(request, 12)
    prefill.compute((request, 8))
    prefill.compute((request, 4))
    prefill.hand_over(request, 5)
    finished = []
    wait_for(lambda: finished.extend(decode.receiver.get_finished()) or finished, 10)
    assert prefill.sender.bytes_sent == 12 * 2 * MODEL.config.num_hidden_layers * MODEL.config.kv_size * 4


def test_an_aborted_requests_blocks_are_written_no_more(close):
    decode = close(Decode())
    prefill = close(Prefill(decode))
    gone, stays = decode.reserve("gone", 8), decode.reserve("stays", 8)
    blocks = list(gone.blocks)
    decode.receiver.request_finished(gone)
    prefill.compute((prefill.begin("gone", 8), 8), (one := prefill.begin("stays", 8), 8))
    prefill.hand_over(one, 5)
    finished = []
    wait_for(lambda: finished.extend(decode.receiver.get_finished()) or finished, 10)
    assert finished == [(stays, 5)]
    assert not decode.cache.k[:, blocks].any() and not decode.cache.v[:, blocks].any()


def test_another_attempts_keys_are_thrown_away(close):
    decode = close(Decode())
    prefill = close(Prefill(decode))
    request = decode.reserve("r", 8, attempt=1)
    old = prefill.begin("r", 8, attempt=0)
    prefill.compute((old, 8))
    prefill.hand_over(old, 5)
    wait_for(lambda: decode.receiver.bytes_received > 0, 10)
    time.sleep(0.05)
    assert decode.receiver.get_finished() == [] and not decode.tokens_of(request).any()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vocab_size": 98}, "other model: vocab_size 98 against 97"),
        ({"num_hidden_layers": 3}, "other model: num_hidden_layers 3 against 2"),
        ({"seed": 1}, "other weights"),
        ({"dtype": torch.bfloat16}, "other dtype: bfloat16 against float32"),
    ],
)
def test_another_model_is_refused_by_name_at_the_handshake(close, changes, words):
    dtype = changes.pop("dtype", torch.float32)
    decode = close(Decode())
    prefill = close(Prefill(decode, model=small_model(**changes).to(dtype)))
    prefill.compute((prefill.begin("r", 8), 8))
    ((what, link, reason, _),) = prefill.inbox.take(10)
    assert what == "closed" and words in reason and "prefill-0 does not fit here" in reason
    assert [s.job.key for s in prefill.sender.of_link(link)] == ["r"]


def test_a_fingerprint_tells_one_weight_from_another():
    other = small_model()
    assert difference(fingerprint(other), fingerprint(MODEL)) == ""
    with torch.no_grad():
        other.layers[1].mlp.down_proj.weight[3, 4] += 1e-3
    assert "other weights" in difference(fingerprint(other), fingerprint(MODEL))


def shaken_hands(decode: Decode) -> tuple[Network, Inbox, object, Pair]:
    """A prefill worker whose next moves a test decides."""
    network, inbox, got = Network(SECRET, Liveness()), Inbox(), []
    channel = network.dial(*decode.address, inbox)
    wait_for(lambda: channel.is_open, 5)
    channel.send(Hello("scripted", fingerprint(MODEL), "gloo"))
    wait_for(lambda: got.extend(e for e in inbox.take(0.1) if isinstance(e[2], Welcome)) or got, 5)
    return network, inbox, channel, join(GlooPair, got[0][2], HOST, SECRET, 5)


def layer_of(num_tokens: int) -> torch.Tensor:
    c = MODEL.config
    return torch.ones(2, num_tokens, c.num_key_value_heads, c.head_dim)


def closed_for(inbox: Inbox) -> str:
    events = []
    wait_for(lambda: events.extend(e for e in inbox.take(0.1) if e[0] == "closed") or events, 10)
    return events[0][2]


def test_a_peer_that_leaves_after_some_layers_completes_nothing_and_others_can_come(close):
    decode = close(Decode())
    request = decode.reserve("r", 8)
    network, _, channel, pair = shaken_hands(decode)
    channel.send(Transfer((Part("r", 0, 0, 8),), layer_of(8).nbytes))
    pair.send(layer_of(8))
    wait_for(lambda: decode.receiver.bytes_received > 0, 5)
    channel.close("cut")
    del pair
    network.close()
    assert decode.receiver.get_finished() == []
    decode.receiver.request_finished(request)
    prefill = close(Prefill(decode))
    decode.reserve("s", 8)
    one = prefill.begin("s", 8)
    prefill.compute((one, 8))
    prefill.hand_over(one, 5)
    finished = []
    wait_for(lambda: finished.extend(decode.receiver.get_finished()) or finished, 10)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (Transfer((Part("r", 0, 0, 8),), 100), "layers of 100 bytes are announced for tokens of 1024"),
        (Transfer((Part("r", 0, 3, 5),), 640), "tokens 3 .. 7 of request r came, and 0 .. 7 are due"),
        (Transfer((Part("r", 0, 0, 9),), 1152), "tokens 0 .. 8 of request r came"),
        (Transfer((Part("r", 0, 0, 10**9),), 1), "1000000000 tokens are announced, and the cache has 160"),
        (Transfer((), 0), "0 tokens are announced"),
        (Hello("again", fingerprint(MODEL), "gloo"), "a Hello came where a Transfer is due"),
    ],
)
def test_a_transfer_that_does_not_fit_closes_the_link_and_writes_nothing(close, caplog, message, words):
    caplog.set_level("INFO")
    decode = close(Decode())
    request = decode.reserve("r", 8)
    network, inbox, channel, _ = shaken_hands(decode)
    channel.send(message)
    closed_for(inbox)
    network.close()
    assert words in caplog.text
    assert not decode.tokens_of(request).any() and decode.receiver._loading["r", 0].next == 0


@pytest.mark.parametrize("num_tokens", [7, 9])
def test_a_layer_of_another_size_than_announced_does_not_leave(close, num_tokens):
    decode = close(Decode())
    prefill = close(Prefill(decode))
    decode.reserve("r", 8)
    link = prefill.sender.add(prefill.begin("r", 8), prefill.sender.all()[0].job, 0.0).link
    link.begin((Part("r", 0, 0, 8),))
    link.put(Staged(layer_of(num_tokens), None))
    ((what, _, reason, _),) = prefill.inbox.take(10)
    assert what == "closed" and reason == f"a layer of {num_tokens} tokens, and 8 are announced"
    assert prefill.sender.bytes_sent == decode.receiver.bytes_received == 0


def test_a_pair_refuses_whoever_does_not_know_the_secret():
    meeting, failures = Meeting(HOST), []
    welcome = meeting.invite()

    def other():
        with pytest.raises(RuntimeError):
            join(GlooPair, welcome, HOST, b"another", 2)
        failures.append("other")

    thread = threading.Thread(target=other)
    thread.start()
    with pytest.raises(RuntimeError, match="does not know this run's secret"):
        GlooPair(meeting.store, welcome.prefix, RECEIVER, HOST, SECRET, 2)
    thread.join(10)
    assert failures == ["other"]


def test_who_waits_for_a_pair_that_never_comes_gives_up():
    meeting = Meeting(HOST)
    with pytest.raises(RuntimeError):
        GlooPair(meeting.store, "nobody", SENDER, HOST, SECRET, 0.3)


def test_store_and_pair_listen_at_the_host_alone():
    listening_before = listening_addresses()
    meeting = Meeting(HOST)
    welcome, pairs = meeting.invite(), []
    thread = threading.Thread(target=lambda: pairs.append(join(GlooPair, welcome, HOST, SECRET, 5)))
    thread.start()
    pairs.append(GlooPair(meeting.store, welcome.prefix, RECEIVER, HOST, SECRET, 5))
    thread.join(10)
    new = listening_addresses() - listening_before
    assert len(pairs) == 2 and new and {address for address, _ in new} == {HOST}


def listening_addresses() -> set[tuple[str, int]]:
    """(address, port) of every socket of this process that listens."""
    found = psutil.Process().net_connections(kind="tcp")
    return {(one.laddr.ip, one.laddr.port) for one in found if one.status == psutil.CONN_LISTEN}


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """A clock that only sleeping moves, for those who pace."""
    clock = SimpleNamespace(now=100.0, perf_counter=lambda: clock.now)
    clock.sleep = lambda seconds: setattr(clock, "now", clock.now + seconds)
    monkeypatch.setattr(outgoing, "time", clock)
    return clock


def test_a_link_is_as_slow_as_it_is_told_to_be(clock):
    pacer, arrived = Pacer(Link(gbps=8e-3, latency_s=0.05)), []  # a million bytes a second
    for _ in range(3):  # all there at once: the bytes queue, the latency passes for all together
        pacer.wait(10_000, 100.0)
        arrived.append(clock.now - 100)
    assert arrived == pytest.approx([0.06, 0.07, 0.08])
    clock.now = 200.0  # the link has had time to rest
    pacer.wait(10_000, 199.97)
    assert clock.now == pytest.approx(200.03)


def test_a_fast_link_does_not_wait(clock):
    Pacer(Link()).wait(10**12, 100.0)
    assert clock.now == 100.0


def test_gather_is_what_write_took():
    cache = PagedKVCache(MODEL.config, 5, 4)
    k, v = (torch.randn(7, 2, 8, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    slots = random_ids(1, 20, vocab_size=20)[0].unique()[:7]
    cache.write(1, k[: len(slots)], v[: len(slots)], slots)
    assert torch.equal(cache.gather(1, slots), torch.stack((k[: len(slots)], v[: len(slots)])))
