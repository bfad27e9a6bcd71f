"""A decode worker's link from one prefill worker: shake hands, then receive what is announced."""

import queue
import threading
import time

import torch

from minitransformer.disaggregation.channel import Channel, Handler
from minitransformer.disaggregation.fingerprint import difference
from minitransformer.disaggregation.messages import Got, Hello, Refused, Transfer
from minitransformer.disaggregation.options import Link
from minitransformer.disaggregation.pair import RECEIVER, Meeting, Pair, pair_class
from minitransformer.disaggregation.receiver import KVReceiver
from minitransformer.disaggregation.records import BadMessage, Fingerprint, NewToken


class Incoming(Handler):
    """Handles one channel, with a thread that receives. A failure closes the channel, which tells the
    prefill worker; the router hears of it from there."""

    def __init__(
        self, receiver: KVReceiver, meeting: Meeting, fingerprint: Fingerprint, secret: bytes, link: Link
    ):
        self._receiver, self._meeting, self._fingerprint = receiver, meeting, fingerprint
        self._secret, self._link = secret, link
        self._queue: queue.SimpleQueue = queue.SimpleQueue()

    # --- from the network's thread --------------------------------------------------------------------

    def opened(self, channel):
        threading.Thread(target=self._work, args=(channel,), name="receiver", daemon=True).start()

    def received(self, channel, message):
        if isinstance(message, NewToken):
            if self._receiver.follows(message):
                channel.send(Got(message.key, message.attempt))
        else:
            self._queue.put(message)

    def closed(self, channel, reason):
        self._queue.put(None)

    # --- the link's own thread ------------------------------------------------------------------------

    def _work(self, channel: Channel):
        try:
            pair = self._shake_hands(channel)
            while pair is not None and (message := self._queue.get()) is not None:
                self._receive(channel, pair, message)
        except (RuntimeError, BadMessage, queue.Empty) as error:
            channel.close(f"the link of keys and values is broken: {error or 'no word in time'}")

    def _shake_hands(self, channel: Channel) -> Pair | None:
        hello = self._queue.get(timeout=self._link.timeout_s)
        if hello is None:
            return None
        if not isinstance(hello, Hello):
            raise BadMessage(f"a prefill worker begins with Hello, got {type(hello).__name__}")
        differs, transport = difference(hello.fingerprint, self._fingerprint), self._link.transport
        if hello.transport != transport:
            differs = f"other transport: {hello.transport:.20} against {transport}"
        if differs:
            channel.send(Refused(f"{hello.name} does not fit here: {differs}"))
            channel.close(f"{hello.name} does not fit here: {differs}")
            return None
        welcome, timeout = self._meeting.invite(), self._link.timeout_s
        channel.send(welcome)
        meeting, kind = self._meeting, pair_class(transport)
        return kind(meeting.store, welcome.prefix, RECEIVER, meeting.host, self._secret, timeout)

    def _receive(self, channel: Channel, pair: Pair, transfer: Transfer):
        if not isinstance(transfer, Transfer):
            raise BadMessage(f"a {type(transfer).__name__} came where a Transfer is due")
        staged = self._room(transfer)
        begin = time.perf_counter()
        for part in transfer.parts:
            self._receiver.check(part)
        for layer, room in enumerate(staged):
            pair.recv(room, self._link.seconds(room.nbytes))
            self._receiver.write(layer, room, transfer.parts)
        self._receiver.busy_s += time.perf_counter() - begin
        for part in transfer.parts:
            if self._receiver.arrived(part):
                channel.send(Got(part.key, part.attempt))

    def _room(self, transfer: Transfer) -> torch.Tensor:
        """Memory for all layers, [L, 2, n, G, D]. Raises BadMessage where sizes do not fit."""
        staged = self._receiver.room(sum(part.count for part in transfer.parts))
        if staged[0].nbytes != transfer.layer_nbytes:
            raise BadMessage(
                f"layers of {transfer.layer_nbytes} bytes are announced for tokens of {staged[0].nbytes}"
            )
        return staged
