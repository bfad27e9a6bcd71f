"""Begins the processes of a pool, notices which have ended, and ends them all."""

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict

from minitransformer.disaggregation.options import SECRET, Liveness, RouterOptions, WorkerOptions
from minitransformer.disaggregation.pair import family_of

LAST_WORDS = 2000  # characters of what a process said before its end


class Process:
    """A router or a worker. It ends when its standard input closes, and so with whoever began it."""

    def __init__(self, content: dict, secret: str, fds: tuple[int, ...] = (), heard: bool = False):
        """`heard`: what it says goes where this process says things, and is not kept for `last_words`."""
        # Appending: where this process reads, that one must not go on to write.
        self._said = tempfile.TemporaryFile("a+", errors="replace")  # noqa: SIM115
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "minitransformer.disaggregation.process"],
            stdin=subprocess.PIPE,
            stdout=None if heard else self._said,
            stderr=None if heard else self._said,
            text=True,
            pass_fds=fds,
            env=os.environ | {SECRET: secret},
        )
        self.popen.stdin.write(json.dumps(content) + "\n")
        self.popen.stdin.flush()

    @property
    def has_ended(self) -> bool:
        return self.popen.poll() is not None

    def last_words(self) -> str:
        """The end of what it has said."""
        self._said.seek(0)
        return self._said.read()[-LAST_WORDS:].strip()

    def end(self):
        """Asks it to end; `kill` makes sure."""
        with contextlib.suppress(OSError):  # it has ended by itself
            self.popen.stdin.close()

    def kill(self, patience_s: float = 0.0):
        """Ends it after so many seconds at most."""
        try:
            self.popen.wait(patience_s)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
        self._said.close()


class Supervisor:
    """The processes of one pool on this machine: a router, which it begins anew when it dies, and workers.

    `secret` is made up where none is given. Use `close`, or everything lives on until this process ends.
    """

    def __init__(self, host: str, port: int, options: RouterOptions, liveness: Liveness, secret: str | None):
        """Raises OSError where the address can't be had."""
        self.secret = secret or secrets.token_hex(32)
        self._options, self._liveness = options, liveness
        self._bound = socket.create_server((host, port), family=family_of(host), backlog=128)
        self.workers: dict[str, Process] = {}
        self._closes, self._lock = threading.Event(), threading.Lock()
        self.router = self._begin_router()
        threading.Thread(target=self._watch, name="supervisor", daemon=True).start()

    @property
    def address(self) -> tuple[str, int]:
        """Where the router listens."""
        return self._bound.getsockname()[:2]

    def begin_worker(self, kind: str, options: WorkerOptions):
        self.workers[options.name] = Process({"role": kind, "options": options.as_dict()}, self.secret)

    def begin_server(self, content: dict):
        """An OpenAI-compatible server in front of the router."""
        self.workers["server"] = Process({"role": "server", **content}, self.secret, heard=True)

    def ended(self) -> dict[str, str]:
        """The last words of workers that have ended, by their names."""
        return {name: p.last_words() for name, p in self.workers.items() if p.has_ended}

    def close(self):
        """Ends every process, within a few seconds."""
        self._closes.set()
        with self._lock:
            processes = [*self.workers.values(), self.router]
        for process in processes:
            process.end()
        give_up = time.monotonic() + 2
        for process in processes:
            process.kill(max(give_up - time.monotonic(), 0))
        self._bound.close()

    def _begin_router(self) -> Process:
        fd = self._bound.fileno()
        options = {"options": asdict(self._options), "liveness": asdict(self._liveness)}
        return Process({"role": "router", "fd": fd, **options}, self.secret, fds=(fd,))

    def _watch(self):
        while not self._closes.wait(0.1):
            with self._lock:
                if self.router.has_ended and not self._closes.is_set():
                    self.router.kill()
                    self.router = self._begin_router()
