"""A prefill worker's link to one decode worker: dial, shake hands, then send what is put in, in order."""

import queue
import threading
import time

from minitransformer.disaggregation.channel import Channel, Handler
from minitransformer.disaggregation.messages import Hello, Message, Refused, Transfer, Welcome
from minitransformer.disaggregation.network import Inbox, Network
from minitransformer.disaggregation.options import Link
from minitransformer.disaggregation.pair import Pair, join, pair_class
from minitransformer.disaggregation.records import Part
from minitransformer.disaggregation.staging import Staged


class Outgoing(Handler):
    """Begins to connect when it is made; what is put in before it has is sent then.

    When it can't go on it leaves ("closed", this link, why) in `inbox`, once; messages from the decode
    worker get there too.
    """

    def __init__(self, network: Network, inbox: Inbox, address: tuple[str, int], host: str, link: Link):
        self._network, self._inbox, self._address, self._host = network, inbox, address, host
        self._link, self._pacer = link, Pacer(link)
        self._answers: queue.SimpleQueue = queue.SimpleQueue()
        self._queue: queue.SimpleQueue = queue.SimpleQueue()
        self._channel: Channel | None = None
        self._once = threading.Lock()  # taken when it closes, and never given back
        self._parts: tuple[Part, ...] = ()  # of the layers that come next, until the first one leaves
        self._num_tokens = 0
        self.closed_for = ""
        self.bytes_sent, self.busy_s = 0, 0.0  # seconds in which something was on its way
        self._done_s = 0.0

    @property
    def is_closed(self) -> bool:
        return self._once.locked()

    def start(self, hello: Hello) -> "Outgoing":
        threading.Thread(target=self._work, args=(hello,), name="sender", daemon=True).start()
        return self

    def begin(self, parts: tuple[Part, ...]):
        """Tensors of these tokens will follow, one for each layer."""
        self._queue.put((time.perf_counter(), parts))

    def put(self, what: Staged | Message):
        """A layer [2, n, G, D], which nobody changes from now on, or a message."""
        self._queue.put((time.perf_counter(), what))

    def close(self, reason: str):
        self._end(reason)

    # --- from the network's thread --------------------------------------------------------------------

    def opened(self, channel):
        self._answers.put(None)

    def received(self, channel, message):
        if isinstance(message, Welcome):
            self._answers.put(message)
        elif isinstance(message, Refused):
            self.closed(channel, message.reason)
        else:
            self._inbox.received(self, message)

    def closed(self, channel, reason):
        self._answers.put(Refused(reason))
        self._end(reason)

    # --- the link's own thread ------------------------------------------------------------------------

    def _work(self, hello: Hello):
        try:
            pair = self._open(hello)
            while (item := self._queue.get()) is not None and not self.is_closed:
                since, what = item
                if isinstance(what, tuple):
                    self._parts, self._num_tokens = what, sum(part.count for part in what)
                elif isinstance(what, Staged):
                    self._pass(pair, what, since)
                else:
                    self._channel.send(what)
        except (RuntimeError, OSError, queue.Empty) as error:
            self._end(str(error) or "no answer in time")
        finally:  # it may have been closed while it was still dialing
            if self._channel is not None:
                self._channel.close(self.closed_for)

    def _open(self, hello: Hello) -> Pair:
        timeout = self._link.timeout_s
        self._channel = self._network.dial(*self._address, self, timeout)
        self._answer(timeout)
        self._channel.send(hello)
        welcome = self._answer(timeout)
        return join(pair_class(self._link.transport), welcome, self._host, self._network.secret, timeout)

    def _answer(self, timeout: float) -> Welcome | None:
        answer = self._answers.get(timeout=timeout)
        if isinstance(answer, Refused):
            raise OSError(answer.reason)
        return answer

    def _pass(self, pair: Pair, staged: Staged, since: float):
        """Sends a layer; its parts go ahead of the first one, so that the other side waits only for what
        is on its way.

        Raises RuntimeError for a layer of another size than announced: gloo would end the other process
        for one that is longer, and not notice one that is shorter.
        """
        if staged.num_tokens != self._num_tokens:
            raise RuntimeError(f"a layer of {staged.num_tokens} tokens, and {self._num_tokens} are announced")
        layer = staged.get()
        if self._parts:
            self._channel.send(Transfer(self._parts, layer.nbytes))
            self._parts = ()
        self._pacer.wait(layer.nbytes, since)
        pair.send(layer)
        now = time.perf_counter()
        self.busy_s += now - max(since, self._done_s)
        self._done_s, self.bytes_sent = now, self.bytes_sent + layer.nbytes

    def _end(self, reason: str):
        if self._once.acquire(blocking=False):
            self.closed_for = reason
            self._queue.put(None)
            if self._channel is not None:
                self._channel.close(reason)
            self._inbox.closed(self, reason)


class Pacer:
    """Makes a link as slow as it is told to be."""

    def __init__(self, link: Link):
        self._link, self._free_s = link, 0.0  # when the last message has left

    def wait(self, nbytes: int, since: float):
        """Until a message that is there since `since` would have arrived: behind those before it, its
        own bytes, and the way."""
        seconds = self._link.seconds(nbytes)
        self._free_s = max(self._free_s, since) + seconds - self._link.latency_s
        late = self._free_s + self._link.latency_s - time.perf_counter()
        if seconds and late > 0:
            time.sleep(late)
