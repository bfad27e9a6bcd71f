"""Messages and channels: what does not fit is refused by name, and whoever refuses it lives on."""

import asyncio
import json
import socket
import struct
import threading
import time
from contextlib import suppress

import pytest
from router_pool import FINGERPRINT, spec
from waiting import wait_for

from minitransformer.disaggregation.channel import Channel, Handler
from minitransformer.disaggregation.messages import (
    VERSION,
    Answered,
    Answers,
    Assign,
    Beat,
    Drop,
    Job,
    Join,
    State,
    Submit,
    Tokens,
    Transfer,
)
from minitransformer.disaggregation.network import Inbox, Network
from minitransformer.disaggregation.options import Liveness
from minitransformer.disaggregation.records import BadMessage, NewToken, Part, Stages, WorkerState
from minitransformer.disaggregation.wire import LARGEST_FRAME, Frames, encode, frame, parse

SECRET = b"of this run"
QUICK = Liveness(interval=0.05, dead_after=0.4)
STAGES = Stages(0.5, 1, 0.25, 0, 2, 0, "prefill-1", "decode-0")
MESSAGES = [
    Beat(0.5, 3, 4, 0.25),
    Drop("7", 2),
    Submit("r", spec((1, 2, 3), 4, known=(5,))),
    Assign("7", 1, spec((1,), 2), 16),
    Job("7", 1, spec((1, 2), 2), 1, "decode-0", "127.0.0.1", 5),
    Join("w", "prefill", 1, "h", 2, FINGERPRINT, 3, 4, 5, 6),
    Tokens((NewToken("7", 1, 0, 9), NewToken("8", 0, 3, 1))),
    Tokens(()),
    Transfer((Part("7", 1, 0, 5),), 640),
    Answers((Answered("r", 0, 9, 2, None), Answered("s", 1, 8, 0, STAGES))),
    State((WorkerState("w", "decode", 1, False, 0, 9, 9, 0, 0.0),), 100, 0, 0),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_a_message_arrives_as_it_was_sent(message):
    frames = Frames()
    frames.push(encode(message))
    assert parse(frames.pop()) == message and frames.pop() is None


def test_frames_come_out_whole_however_they_come_in():
    frames, got = Frames(), []
    data = b"".join(encode(m) for m in MESSAGES)
    for i in range(0, len(data), 7):
        frames.push(data[i : i + 7])
        while (body := frames.pop()) is not None:
            got.append(parse(body))
    assert got == MESSAGES


GOOD = {"type": "Drop", "key": "7", "attempt": 2}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"\x80\x04pickle", "holds no JSON"),
        (b"[1]", "holds a list instead of an object"),
        (b'{"type": "Drop", "key": "7", "attempt": NaN}', "holds no JSON"),
        (b"[" * 100_000, "holds no JSON"),
        (json.dumps(GOOD | {"type": "Shutdown"}).encode(), "unknown kind: 'Shutdown'"),
        (json.dumps(GOOD | {"type": ["Drop"]}).encode(), "unknown kind"),
        (json.dumps({"type": "Drop", "key": "7"}).encode(), "needs the fields ['attempt', 'key']"),
        (json.dumps(GOOD | {"more": 1}).encode(), "needs the fields"),
        (json.dumps(GOOD | {"attempt": "2"}).encode(), "Drop.attempt must be"),
        (json.dumps(GOOD | {"attempt": True}).encode(), "Drop.attempt must be"),
        (json.dumps(GOOD | {"attempt": 2.0}).encode(), "Drop.attempt must be"),
        (b'{"type": "Tokens", "new": [{"key": "7", "attempt": 1, "index": 0}]}', "Tokens.new[0] needs"),
        (b'{"type": "Tokens", "new": {}}', "Tokens.new must be"),
        (encode(MESSAGES[5])[4:].replace(b'"prefill"', b'"both"'), "kind is prefill or decode, got 'both'"),
        (encode(MESSAGES[4])[4:].replace(b'"first":1', b'"first":2'), "tokens from 2 on, of 2"),
        (encode(MESSAGES[2])[4:].replace(b"[1,2,3]", b"[1,-2,3]"), "token ids are 0 or above"),
        (encode(MESSAGES[2])[4:].replace(b"[1,2,3]", b"[]"), "a request of 0 tokens"),
        (encode(MESSAGES[2])[4:].replace(b'"top_p":1.0', b'"top_p":7'), "top_p must be above 0"),
        (encode(MESSAGES[0])[4:].replace(b"0.25", b"1e999"), "Beat.transfer_s must be"),
    ],
)
def test_what_is_no_message_is_refused_by_name(body, words):
    with pytest.raises(BadMessage) as caught:
        parse(body)
    assert words in str(caught.value) and len(str(caught.value)) < 500


def test_a_long_frame_is_refused_by_its_length_alone():
    frames = Frames()
    frames.push((LARGEST_FRAME + 1).to_bytes(4, "big"))
    with pytest.raises(BadMessage, match=f"a frame of {LARGEST_FRAME + 1} bytes is announced"):
        frames.pop()
    with pytest.raises(ValueError, match="that a frame may have"):
        frame({"x": "y" * (LARGEST_FRAME + 1)})


# --- channels -----------------------------------------------------------------------------------------


@pytest.fixture
def network():
    """A listening process and what it hears."""
    with Listening(SECRET) as listening:
        yield listening


class Listening:
    def __init__(self, secret: bytes):
        self.inbox, self.network = Inbox(), Network(secret, QUICK)
        bound = socket.create_server(("127.0.0.1", 0))
        self.address = bound.getsockname()
        self.network.listen(bound, lambda: self.inbox)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.network.close()

    def dial(self, inbox: Handler, secret: bytes = SECRET) -> tuple[Network, Channel]:
        network = Network(secret, QUICK)
        return network, network.dial(*self.address, inbox)

    def raw(self) -> socket.socket:
        """A connection of somebody who has not proved anything."""
        return socket.create_connection(self.address, timeout=5)


def next_event(inbox: Inbox) -> tuple:
    (event, *rest) = inbox.take(5)
    assert not rest
    return event[0], event[2]


def test_two_who_know_the_secret_exchange_messages_both_ways(network):
    exchange(network, stay_s=2 * QUICK.dead_after)  # beats keep it open


def exchange(network: Listening, stay_s: float = 0):
    inbox = Inbox()
    other, channel = network.dial(inbox)
    assert next_event(inbox) == ("opened", None)
    channel.send(Drop("7", 1))
    events = []
    wait_for(lambda: events.extend(network.inbox.take(0.1)) or len(events) == 2)
    assert [what for what, *_ in events] == ["opened", "received"] and events[1][2] == Drop("7", 1)
    events[0][1].send(Drop("8", 2))
    assert next_event(inbox) == ("received", Drop("8", 2))
    time.sleep(stay_s)
    assert channel.is_open and inbox.take(0) == []
    channel.close("enough")
    assert next_event(inbox) == ("closed", "enough")
    other.close()


def test_who_does_not_know_the_secret_is_refused_and_told_so(network):
    inbox = Inbox()
    other, _ = network.dial(inbox, b"another")
    what, reason = next_event(inbox)
    assert what == "closed" and "it does not know this run's secret" in reason
    assert "it does not know this run's secret" in next_event(network.inbox)[1]
    other.close()


def test_who_only_pretends_to_know_the_secret_hears_nothing():
    # The dialer proves itself first; a listener that then can't is left.
    with Listening(b"another") as stranger:
        inbox = Inbox()
        network = Network(SECRET, QUICK)
        network.dial(*stranger.address, inbox)
        assert next_event(inbox)[0] == "closed"
        network.close()


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "a frame of 1195725856 bytes is announced, and 1024 are allowed"),
        (frame({"version": VERSION + 1, "nonce": "00", "mac": "00"}), f"it speaks version {VERSION + 1}"),
        (frame({"version": VERSION, "nonce": "00", "mac": "00"}), "it does not know this run's secret"),
        (frame({"version": VERSION, "nonce": 7, "mac": "00"}), "its proof lacks the nonce"),
        (frame({"version": VERSION, "nonce": "00"}), "its proof lacks the mac"),
        (encode(Drop("7", 1)), "it speaks version None"),
        (b"\x00\x00\x00\x04\xff\xff\xff\xff", "holds no JSON"),
    ],
)
def test_a_stranger_gets_nowhere_and_the_listener_lives_on(network, said, words):
    with network.raw() as stranger:
        stranger.sendall(said)
        what, reason = next_event(network.inbox)
        assert what == "closed" and words in reason
        everything = b""
        while piece := stranger.recv(4096):
            everything += piece
        assert b"refused" in everything
    exchange(network)


def test_a_proof_that_was_overheard_proves_nothing(network):
    """Every connection has its own nonces."""
    heard = overhear(network)
    with network.raw() as stranger:
        stranger.sendall(heard)
        assert "it does not know this run's secret" in next_event(network.inbox)[1]


def overhear(network) -> bytes:
    """What a true dialer says to a listener in the middle, which passes everything on."""
    with socket.create_server(("127.0.0.1", 0)) as middle:
        inbox, other = Inbox(), Network(SECRET, QUICK)
        connecting = threading.Thread(target=lambda: other.dial(*middle.getsockname(), inbox))
        connecting.start()
        ours, _ = middle.accept()
        connecting.join()
        with ours, network.raw() as on:
            ours.sendall(on.recv(4096))
            said = ours.recv(4096)
            on.sendall(said)
            assert next_event(network.inbox)[0] == "opened"
        assert next_event(network.inbox)[0] == "closed"
        other.close()
    return said


def test_a_stranger_who_says_nothing_is_left_after_a_while(network):
    with network.raw() as stranger:
        began = time.monotonic()
        assert "nothing was heard" in next_event(network.inbox)[1]
        assert time.monotonic() - began < 10 * QUICK.dead_after
        with suppress(ConnectionResetError):
            while stranger.recv(4096):  # its end, or a TimeoutError
                pass


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (frame({"type": "Drop", "key": "7"}), "Drop needs the fields"),
        (frame({"type": "Unknown"}), "unknown kind"),
        (struct.pack(">I", LARGEST_FRAME + 1), "bytes is announced"),
        (b"\x00\x00\x00\x02{{", "holds no JSON"),
    ],
)
def test_rubbish_from_a_peer_closes_the_channel_alone(network, said, words):
    inbox = Inbox()
    other, channel = network.dial(inbox)
    assert next_event(inbox)[0] == "opened" and next_event(network.inbox)[0] == "opened"
    channel._in_loop(channel._write, said)
    what, reason = next_event(network.inbox)
    assert what == "closed" and words in reason
    other.close()
    exchange(network)


def test_a_peer_that_falls_silent_is_dead(network):
    inbox = Inbox()
    other, _ = network.dial(inbox)
    assert next_event(network.inbox)[0] == "opened"
    other._loop.call_soon_threadsafe(time.sleep, 3 * QUICK.dead_after)  # it hangs, and its socket is open
    what, reason = next_event(network.inbox)
    assert what == "closed" and "nothing was heard" in reason
    other.close()


def test_a_handler_that_fails_closes_its_channel_alone():
    class Fails(Handler):
        def received(self, channel, message):
            raise RuntimeError("of the handler's own")

    async def talk():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda *_: None)
        make = lambda handler, dialed: Channel(SECRET, handler, dialed=dialed, liveness=QUICK)  # noqa: E731
        server = await loop.create_server(lambda: make(Fails(), False), "127.0.0.1", 0)
        for _ in range(2):
            inbox = Inbox()
            address = server.sockets[0].getsockname()
            _, channel = await loop.create_connection(lambda inbox=inbox: make(inbox, True), *address)
            while not channel.is_open:
                await asyncio.sleep(0.01)
            channel.send(Drop("7", 1))
            while not channel.reason:
                await asyncio.sleep(0.01)
        server.close()

    asyncio.run(asyncio.wait_for(talk(), 10))
