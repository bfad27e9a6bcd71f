"""The event loop of a process that has other things to do: a thread that keeps its connections."""

import asyncio
import queue
import socket
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from minitransformer.disaggregation.channel import Channel, Handler
from minitransformer.disaggregation.messages import Beat
from minitransformer.disaggregation.options import Liveness


class Event(NamedTuple):
    """what   "opened", "received" (content: the message), "closed" (content: the reason) or "wake"
    came_s    by `time.perf_counter`
    """

    what: str
    channel: Channel | None
    content: object
    came_s: float


class Inbox(Handler):
    """Events for the process' main thread: it takes them when it has time."""

    def __init__(self):
        self._events: queue.SimpleQueue = queue.SimpleQueue()

    def opened(self, channel):
        self._put("opened", channel)

    def received(self, channel, message):
        self._put("received", channel, message)

    def closed(self, channel, reason):
        self._put("closed", channel, reason)

    def wake(self):
        """Ends the wait of whoever waits for an event."""
        self._put("wake")

    def take(self, timeout: float) -> list[Event]:
        """All events there are; waits up to `timeout` seconds for a first one."""
        events = []
        try:
            events.append(self._events.get(timeout=timeout) if timeout > 0 else self._events.get_nowait())
            while True:
                events.append(self._events.get_nowait())
        except queue.Empty:
            return events

    def _put(self, what: str, channel: Channel | None = None, content=None):
        self._events.put(Event(what, channel, content, time.perf_counter()))


class Network:
    """Dials and listens for a process; its channels' handlers are called in a thread of its own."""

    def __init__(self, secret: bytes, liveness: Liveness, beat: Callable[[], Beat] = Beat):
        self.secret, self.liveness, self.beat = secret, liveness, beat
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="network", daemon=True)
        self._thread.start()
        self._servers: list[asyncio.Server] = []

    def dial(self, host: str, port: int, handler: Handler, timeout: float = 3.0) -> Channel:
        """A channel to the address, which may not have opened yet. Raises OSError where nobody listens."""

        async def connect():
            make = lambda: self._channel(handler, dialed=True)  # noqa: E731
            connecting = self._loop.create_connection(make, host, port)
            try:
                _, channel = await asyncio.wait_for(connecting, timeout)
            except TimeoutError:
                raise OSError(f"{host}:{port} did not answer within {timeout} s") from None
            return channel

        return asyncio.run_coroutine_threadsafe(connect(), self._loop).result()

    def listen(self, bound: socket.socket, make_handler: Callable[[], Handler]):
        """Takes connections at a socket; each gets a handler of its own."""

        async def start():
            make = lambda: self._channel(make_handler(), dialed=False)  # noqa: E731
            self._servers.append(await self._loop.create_server(make, sock=bound))

        asyncio.run_coroutine_threadsafe(start(), self._loop).result()

    def close(self):
        """Ends all connections and the thread."""

        async def end():
            for server in self._servers:
                server.close()
            await asyncio.sleep(0.05)  # what was just sent leaves
            self._loop.stop()

        asyncio.run_coroutine_threadsafe(end(), self._loop)
        self._thread.join(5)

    def _channel(self, handler: Handler, dialed: bool) -> Channel:
        return Channel(self.secret, handler, dialed=dialed, liveness=self.liveness, beat=self.beat)
