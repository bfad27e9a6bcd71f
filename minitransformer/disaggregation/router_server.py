"""The router as a process: sockets and a clock for the state machine in router.py."""

import asyncio
import socket
import time

from minitransformer.disaggregation.channel import Channel, Handler
from minitransformer.disaggregation.options import Liveness, RouterOptions
from minitransformer.disaggregation.records import BadMessage
from minitransformer.disaggregation.router import Router


class RouterServer(Handler):
    """Serves at a bound socket until it is cancelled."""

    def __init__(self, options: RouterOptions, liveness: Liveness, secret: bytes):
        self.router, self._liveness, self._secret = Router(options), liveness, secret

    async def serve(self, bound: socket.socket):
        loop = asyncio.get_running_loop()
        server = await loop.create_server(self._channel, sock=bound, backlog=128)
        async with server:
            while True:
                await asyncio.sleep(self._liveness.interval)
                self.router.tick(time.monotonic())

    def received(self, channel, message):
        try:
            self.router.received(channel, message, time.monotonic())
        except BadMessage as error:
            channel.close(str(error))

    def beat(self, channel, beat):
        self.router.beat(channel, beat)

    def closed(self, channel, reason):
        self.router.closed(channel, reason, time.monotonic())

    def _channel(self) -> Channel:
        return Channel(self._secret, self, dialed=False, liveness=self._liveness)
