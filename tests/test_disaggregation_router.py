"""The router as a state machine, among workers in memory: whatever dies, each request is answered once."""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from router_pool import FINGERPRINT, FakeWorker, Wire, World, spec, token_at

from minitransformer.disaggregation.messages import (
    Abort,
    Assign,
    Beat,
    Drop,
    Greet,
    Job,
    Join,
    Prefilled,
    PrefillHere,
    Refused,
    Remove,
    Reserved,
    Stop,
    Submit,
    Tokens,
)
from minitransformer.disaggregation.records import BadMessage, Fingerprint, NewToken

RNG = random.Random(0)


def answer(asked: tuple[tuple[int, ...], int]) -> list[int]:
    prompt, max_new_tokens = asked
    return [token_at(prompt, i) for i in range(max_new_tokens)]


def prompt(rng: random.Random) -> tuple[int, ...]:
    return tuple(rng.randrange(50) for _ in range(rng.randint(1, 40)))


def check(world: World):
    """Everything is answered and nobody keeps anything."""
    client = world.client
    for name, asked in client.asked.items():
        assert client.got[name] == answer(asked) and client.stages[name] is not None
    assert not world.router.flights
    assert all(not w.has for w in world.workers.values())
    assert all(m.outstanding == 0 and not m.load for m in world.router.pool.members.values())


@given(st.integers(0, 10**9))
@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    database=None,
)
def test_whatever_dies_each_request_gets_its_tokens_once(seed):
    rng = random.Random(seed)
    world = World(rng.randint(0, 3), rng.randint(1, 3), broken=rng.choice([0, 0.2, 1.0]))
    for i in range(rng.randint(1, 12)):
        world.client.ask(f"r{i}", prompt(rng), rng.randint(1, 6))
        for _ in range(rng.randint(0, 60)):
            world.step(rng)
        if rng.random() < 0.5:
            kill_one(world, rng)
        if rng.random() < 0.2:
            world.client.wire.to_router.append(Remove(rng.choice(list(world.workers))))
            world.join("decode")
    world.settle(rng)
    check(world)


def kill_one(world: World, rng: random.Random):
    """And begins another of its kind, so that there always is one."""
    name = rng.choice(list(world.workers))
    kind = world.workers[name].kind
    world.kill(name, rng)
    world.join(kind)


def test_stages_add_up_to_the_time_that_the_request_took():
    world = World(1, 1)
    for i in range(4):
        world.client.ask(f"r{i}", prompt(RNG), 4)
    world.settle(RNG)
    for stages in world.client.stages.values():
        parts = (stages.queued, stages.prefill, stages.first_token, stages.transfer, stages.decode)
        assert all(part >= 0 for part in parts)
        assert 0 < sum(parts) <= world.now


def one_assigned(**options) -> tuple[World, FakeWorker, FakeWorker]:
    """A world in which a request of 20 tokens is at the decode worker."""
    world = World(1, 1, **options)
    prefill, decode = world.workers.values()
    world.router.received(world.client.wire, Submit("r", spec(tuple(range(20)), 5)), world.now)
    return world, prefill, decode


def test_a_prompt_is_computed_only_when_the_decode_worker_has_made_room():
    world, prefill, decode = one_assigned()
    (assign,) = decode.wire.to_peer
    assert isinstance(assign, Assign) and not prefill.wire.to_peer
    world.router.received(decode.wire, Reserved(assign.key, 0, 8, 12), world.now)
    (job,) = prefill.wire.to_peer
    assert isinstance(job, Job) and job.first == 8 and job.peer == decode.name


def test_where_nobody_prefills_the_decode_worker_does():
    world = World(0, 1)
    (decode,) = world.workers.values()
    world.router.received(world.client.wire, Submit("r", spec(tuple(range(20)), 5)), world.now)
    world.router.received(decode.wire, Reserved(decode.wire.to_peer.popleft().key, 0, 0, 20), world.now)
    assert isinstance(decode.wire.to_peer.popleft(), PrefillHere)


def test_a_long_prefill_queue_makes_the_decode_worker_compute_the_prompt():
    world, _, decode = one_assigned(max_queue=10)
    first = decode.wire.to_peer.popleft()
    assert first.local_below == 3
    world.router.received(decode.wire, Reserved(first.key, 0, 0, 20), world.now)
    world.router.received(world.client.wire, Submit("s", spec(tuple(range(30)), 5)), world.now)
    assert decode.wire.to_peer.popleft().local_below > 30


def test_an_old_attempts_tokens_are_of_no_interest():
    world, _, decode = one_assigned()
    key = decode.wire.to_peer.popleft().key
    other = world.join("decode")
    world.kill(decode.name, RNG)
    again = other.wire.to_peer.popleft()
    assert (again.key, again.attempt) == (key, 1)
    world.router.received(other.wire, Tokens((NewToken(key, 0, 0, 55),)), world.now)
    assert world.router.flights[key].output_ids == []


def test_a_token_that_skips_one_begins_a_new_attempt():
    world, _, decode = one_assigned()
    key = decode.wire.to_peer.popleft().key
    world.router.received(decode.wire, Tokens((NewToken(key, 0, 1, 55),)), world.now)
    drop, again = decode.wire.to_peer
    assert drop == Drop(key, 0) and again.attempt == 1 and world.router.flights[key].output_ids == []


def test_a_first_token_that_both_sides_tell_counts_once():
    world, prefill, decode = one_assigned()
    key = decode.wire.to_peer.popleft().key
    world.router.received(decode.wire, Reserved(key, 0, 0, 20), world.now)
    world.router.received(prefill.wire, Prefilled(NewToken(key, 0, 0, 9), 0.1, 0.2), world.now)
    world.router.received(decode.wire, Tokens((NewToken(key, 0, 0, 9),)), world.now)
    world.router.received(decode.wire, Tokens((NewToken(key, 0, 1, 8),)), world.now)
    assert world.router.flights[key].output_ids == [9, 8]


def test_fail_on_loss_ends_the_request_with_the_reason():
    world, _, decode = one_assigned(on_loss="fail")
    world.kill(decode.name, RNG)
    while world.client.wire.to_peer:
        world.client.got["r"] = []
        world.client.read()
    assert world.client.failed == {"r": f"{decode.name} has gone: killed"} and not world.router.flights


def test_attempts_are_counted_and_come_to_an_end():
    world, _, _ = one_assigned(max_attempts=3)
    for _ in range(3):
        name = next(name for name, w in world.workers.items() if w.kind == "decode")
        world.join("decode")
        world.kill(name, RNG)
    assert not world.router.flights
    reasons = [m.reason for m in world.client.wire.to_peer if hasattr(m, "reason")]
    assert len(reasons) == 1 and reasons[0].endswith("(attempt 3 of 3)")


def test_a_request_waits_for_a_decode_worker_but_not_for_ever():
    world = World(1, 0, no_worker_s=5.0)
    world.router.received(world.client.wire, Submit("r", spec((1, 2), 5)), world.now)
    world.router.tick(4.9)
    assert world.router.flights
    world.router.tick(5.1)
    assert not world.router.flights
    assert [m.reason for m in world.client.wire.to_peer if hasattr(m, "reason")] == [
        "no decode worker joined within 5.0 s"
    ]


def test_a_request_of_which_nothing_is_heard_begins_anew():
    world, _, decode = one_assigned(stall_s=5.0)
    world.router.tick(5.1)
    assert [type(m) for m in decode.wire.to_peer] == [Assign, Drop, Assign]


def test_a_worker_that_hangs_in_a_step_is_given_up():
    world, _, decode = one_assigned(hang_s=5.0)
    world.router.beat(decode.wire, Beat(busy_s=4.0))
    assert not decode.wire.closed_for
    world.router.beat(decode.wire, Beat(busy_s=6.0))
    assert "has been in one step for 6 s" in decode.wire.closed_for


def test_an_abort_takes_the_request_from_both_sides():
    world, prefill, decode = one_assigned()
    key = decode.wire.to_peer.popleft().key
    world.router.received(decode.wire, Reserved(key, 0, 0, 20), world.now)
    prefill.wire.to_peer.clear()
    world.router.received(world.client.wire, Abort("r"), world.now)
    assert list(prefill.wire.to_peer) == list(decode.wire.to_peer) == [Drop(key, 0)]
    assert not world.router.flights


def test_what_a_client_asked_for_goes_with_it():
    world, _, decode = one_assigned()
    world.router.closed(world.client.wire, "gone", world.now)
    assert isinstance(decode.wire.to_peer[-1], Drop) and not world.router.flights


def test_a_draining_worker_gets_nothing_new_and_is_stopped_when_it_has_finished():
    world, _, decode = one_assigned()
    key = decode.wire.to_peer.popleft().key
    world.router.received(world.client.wire, Remove(decode.name), world.now)
    assert not decode.wire.to_peer
    world.router.received(world.client.wire, Submit("s", spec((1, 2), 5)), world.now)
    assert not decode.wire.to_peer
    for i in range(5):
        world.router.received(decode.wire, Tokens((NewToken(key, 0, i, 1),)), world.now)
    assert list(decode.wire.to_peer) == [Stop()]


def test_a_request_that_no_worker_has_room_for_is_refused_with_the_numbers():
    world = World(1, 1, max_len=30)
    world.router.received(world.client.wire, Submit("r", spec(tuple(range(20)), 11)), world.now)
    reasons = [m.reason for m in world.client.wire.to_peer if hasattr(m, "reason")]
    assert reasons == ["it needs room for 31 tokens, and the workers have 30"]


def test_a_prompt_goes_where_its_beginning_is_cached():
    world = World(2, 2)
    stems = [tuple(range(i, i + 48)) for i in (0, 100)]
    for i in range(8):
        world.client.ask(f"r{i}", (*stems[i % 2], i), 2)
        world.settle(RNG)
    for worker in world.workers.values():
        served = {prompt[:48] for prompt in worker.prompts}
        assert len(served) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dtype": "bfloat16"}, "other dtype: bfloat16 against float32"),
        ({"weights": "01"}, "other weights: 01 against 00"),
        ({"layout": "layers 2"}, "other layout: layers 2 against layers 1"),
        ({"config": '{"hidden_size": 3}'}, "other model"),
    ],
)
def test_a_worker_that_does_not_fit_is_refused_by_name(changes, words):
    world, wire = World(1, 1), Wire()
    fingerprint = Fingerprint(**vars(FINGERPRINT) | changes)
    world.router.received(wire, Join("odd", "decode", 1, "h", 1, fingerprint, 9, 4, 9, 9), 0.0)
    (refused,) = wire.to_peer
    assert isinstance(refused, Refused) and words in refused.reason and wire.closed_for
    assert "odd" not in world.router.pool.members


def test_a_worker_that_joins_anew_has_lost_what_it_had():
    world, _, decode = one_assigned()
    wire, key = Wire(), decode.wire.to_peer.popleft().key
    world.router.received(wire, Join(decode.name, "decode", 1, "h", 1, FINGERPRINT, 9, 4, 99, 9), 0.0)
    assert decode.wire.closed_for == f"{decode.name} has joined anew" and not decode.wire.to_peer
    again = wire.to_peer.popleft() if wire.to_peer else world.router.flights[key]
    assert again.attempt == 1


@pytest.mark.parametrize("message", [Submit("r", spec((1,), 1)), Reserved("0", 0, 0, 1), Abort("r")])
def test_strangers_may_only_introduce_themselves(message):
    with pytest.raises(BadMessage, match="makes no sense from this peer"):
        World(1, 1).router.received(Wire(), message, 0.0)


def test_a_client_can_not_speak_for_a_worker():
    world = World(1, 1)
    with pytest.raises(BadMessage, match="Tokens makes no sense"):
        world.router.received(world.client.wire, Tokens(()), 0.0)
    with pytest.raises(BadMessage, match="Greet makes no sense"):
        world.router.received(world.client.wire, Greet("again"), 0.0)


def test_no_key_of_a_router_comes_again_after_it():
    """Workers may still have keys and values on their way for requests of a router that has died."""
    keys = [key for _ in range(2) for key in one_assigned()[0].router.flights]
    assert len(set(keys)) == 2
