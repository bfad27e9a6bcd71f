"""A connection between two processes of one run: each proves that it knows the run's secret, then they
exchange messages, and either notices when the other has gone or hangs.

    acceptor -> dialer    Challenge: the version, a nonce
    dialer   -> acceptor  the version, a nonce, HMAC-SHA256(secret, "dialer" + both nonces)
    acceptor -> dialer    HMAC-SHA256(secret, "acceptor" + both nonces)

Then every `interval` seconds without a message a Beat; `dead_after` seconds of silence close it. Nothing is
encrypted: who can read the network reads the prompts, and who can change what passes can say anything.
"""

import asyncio
import hmac
import logging
import secrets
import threading
from collections.abc import Callable

from minitransformer.disaggregation.messages import VERSION, Beat, Message
from minitransformer.disaggregation.options import Liveness
from minitransformer.disaggregation.records import BadMessage
from minitransformer.disaggregation.wire import Frames, encode, frame, parse, parse_object

log = logging.getLogger("minitransformer.disaggregation")
LARGEST_STRANGER = 1024  # bytes of a frame from somebody who has not proved anything
REFUSED = "refused: "  # how the reason of a channel begins that the peer did not open
MOST_UNSENT = 64 * 2**20  # bytes that may wait for a peer that does not read


class Handler:
    """What happens on a channel. Called in the event loop's thread, so nothing here may wait."""

    def opened(self, channel: "Channel"):
        """Both sides have proved themselves."""

    def received(self, channel: "Channel", message: Message):
        """Anything but a Beat."""

    def beat(self, channel: "Channel", beat: Beat):
        """A sign of life."""

    def closed(self, channel: "Channel", reason: str):
        """It is over, also where it never opened."""


class Channel(asyncio.Protocol):
    """One end of a connection. `send` and `close` may be called from any thread."""

    def __init__(
        self,
        secret: bytes,
        handler: Handler,
        *,
        dialed: bool,
        liveness: Liveness,
        beat: Callable[[], Beat] = Beat,
    ):
        self.handler, self.liveness = handler, liveness
        self.is_open, self.reason = False, ""
        self._secret, self._dialed, self._beat = secret, dialed, beat
        self._frames = Frames(LARGEST_STRANGER)
        self._nonce, self._steps = secrets.token_hex(16), 0

    # --- from outside ---------------------------------------------------------------------------------

    def send(self, message: Message):
        """Sends in the order of calls; nothing, where the channel has closed."""
        self._in_loop(self._write, encode(message))

    def close(self, reason: str):
        """Ends the connection after what was sent; `reason` is logged here."""
        self._in_loop(self._close, reason)

    # --- from the event loop --------------------------------------------------------------------------

    def connection_made(self, transport):
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self._transport = transport
        self._since_s = self._heard_s = self._loop.time()
        self._timer = self._loop.call_later(self.liveness.interval, self._tick)
        if not self._dialed:
            self._write(frame({"version": VERSION, "nonce": self._nonce}))

    def data_received(self, data: bytes):
        self._heard_s = self._loop.time()
        self._frames.push(data)
        try:
            while not self.reason and (body := self._frames.pop()) is not None:
                self._take(body) if self.is_open else self._authenticate(parse_object(body))
        except BadMessage as error:
            if not self.is_open:
                self._write(frame({"refused": str(error)}))
            self._close(f"the peer sent no message of ours: {error}")

    def connection_lost(self, error):
        self._timer.cancel()
        self.is_open, self.reason = False, self.reason or str(error or "the peer has gone")
        self.handler.closed(self, self.reason)

    def _take(self, body: bytes):
        message = parse(body)
        if isinstance(message, Beat):
            self.handler.beat(self, message)
        else:
            self.handler.received(self, message)

    def _authenticate(self, said: dict):
        """The next step of the exchange above."""
        self._steps += 1
        if "refused" in said:
            return self._close(f"{REFUSED}{said['refused']!r:.200}")
        if self._dialed and self._steps == 1:
            self._require_version(said)
            self._theirs = self._field(said, "nonce")
            self._write(frame({"version": VERSION, "nonce": self._nonce, "mac": self._mac("dialer")}))
            return
        if not self._dialed:
            self._require_version(said)
            self._theirs = self._field(said, "nonce")
        expected = self._mac("acceptor" if self._dialed else "dialer")
        if not hmac.compare_digest(self._field(said, "mac"), expected):
            raise BadMessage("it does not know this run's secret")
        if not self._dialed:
            self._write(frame({"mac": self._mac("acceptor")}))
        self.is_open, self._frames.largest = True, Frames().largest
        self.handler.opened(self)

    def _mac(self, role: str) -> str:
        nonces = (self._nonce, self._theirs) if self._dialed else (self._theirs, self._nonce)
        return hmac.digest(self._secret, "/".join((role, *nonces)).encode(), "sha256").hex()

    def _require_version(self, said: dict):
        if said.get("version") != VERSION:
            raise BadMessage(f"it speaks version {said.get('version')!r:.20}, and this is version {VERSION}")

    def _field(self, said: dict, name: str) -> str:
        value = said.get(name)
        if not isinstance(value, str) or not value.isascii():
            raise BadMessage(f"its proof lacks the {name}")
        return value

    def _tick(self):
        """Looks after the peer and shows that this side lives."""
        now = self._loop.time()
        since = self._heard_s if self.is_open else self._since_s  # a stranger has so long to prove itself
        if self.reason:  # the peer does not even take what was sent before the end
            self._transport.abort()
        elif now - since > self.liveness.dead_after:
            self._close(f"nothing was heard for {now - since:.1f} s", at_once=True)
        elif self.is_open:
            self._write(encode(self._beat()))
        self._timer = self._loop.call_later(self.liveness.interval, self._tick)

    def _write(self, data: bytes):
        if self.reason:
            return
        self._transport.write(data)
        if self._transport.get_write_buffer_size() > MOST_UNSENT:
            self._close(f"it left more than {MOST_UNSENT} bytes unread", at_once=True)

    def _close(self, reason: str, at_once: bool = False):
        if self.reason:
            return
        self.reason, self.is_open = reason, False
        host = self._transport.get_extra_info("peername")
        log.info("closing the connection with %s: %s", host, reason)
        self._transport.abort() if at_once else self._transport.close()

    def _in_loop(self, call, argument):
        if threading.get_ident() == self._thread:
            call(argument)
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call, argument)
