"""The trusted end: runs the check functions in this process against objects in the learner's kernel.

A verdict comes into being only here, from inputs drawn here. Each task gets one: whoever connects a second
time for the same task, perhaps with what was learned the first time, is turned away.
"""

import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

from minitransformer.course.checking import (
    CRASHED,
    FAILED,
    TIMED_OUT,
    Task,
    Verdict,
    draw_figures,
    judge,
)
from minitransformer.course.remote import Link
from minitransformer.course.wire import BadMessage, Channel, pack

MAX_SESSIONS = 16  # at one time


class SocketLink(Link):
    """Requests to a kernel, all of which must be answered before the deadline."""

    def __init__(self, channel: Channel, seconds: float):
        self.channel = channel
        self.deadline = time.monotonic() + seconds

    def exchange(self, head, blobs):
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.channel.connection.settimeout(left)
        self.channel.send(head, blobs)
        return self.channel.receive()


class Judge:
    """Listens on a socket in a thread of its own; `verdicts` fills as tasks are judged."""

    def __init__(self, path: Path, tasks: dict[str, Task], seconds: float):
        self.tasks, self.seconds = tasks, seconds
        self.verdicts: dict[str, Verdict] = {}
        self.begun: set[str] = set()
        self.lock = threading.Lock()
        self.sessions: list[threading.Thread] = []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()

    def __enter__(self) -> "Judge":
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, *exc):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def settle(self, seconds: float = 5.0):
        """Waits for sessions whose kernel has gone to notice it."""
        end = time.monotonic() + seconds
        for session in list(self.sessions):
            session.join(max(0.0, end - time.monotonic()))

    def _listen(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return  # closed
            self.sessions = [s for s in self.sessions if s.is_alive()]
            if len(self.sessions) >= MAX_SESSIONS:
                connection.close()
                continue
            session = threading.Thread(target=self._session, args=(connection,), daemon=True)
            self.sessions.append(session)
            session.start()

    def _session(self, connection: socket.socket):
        connection.settimeout(self.seconds)
        # Nobody is there to tell: either the kernel has gone, or it sends what no kernel of ours does.
        with connection, suppress(OSError, EOFError, ValueError, TypeError, KeyError):
            self._serve(Channel(connection))

    def _serve(self, channel: Channel):
        hello, blobs = channel.receive()
        task = self.tasks.get(str(hello.get("task")))
        if task is None:
            raise BadMessage("no such task")
        if hello.get("request") == "figures" and task.draw:
            self._send_figures(channel, task, hello.get("seed"))
        elif hello.get("request") == "check":
            if self._first(task):
                self.verdicts[task.id] = self._judge(channel, task, hello, blobs)
            channel.send({"verdict": str(self.verdicts[task.id])}, [])

    def _first(self, task: Task) -> bool:
        with self.lock:
            first = task.id not in self.begun
            self.begun.add(task.id)
            return first

    def _judge(self, channel: Channel, task: Task, hello: dict, blobs: list[bytes]) -> Verdict:
        link, seed = SocketLink(channel, self.seconds), hello.get("seed")
        if task.draw and (not isinstance(seed, (int, str)) or len(repr(seed)) > 40):
            why = "The seed must be a short whole number or string."
            return Verdict(task.id, task.title, FAILED, why)
        try:
            return judge(task, link.unpack(hello.get("answer"), blobs), seed)
        except TimeoutError:
            why = f"Your code did not come back within {self.seconds:g} seconds. Does a loop never end?"
            return Verdict(task.id, task.title, TIMED_OUT, why)
        except (EOFError, OSError):
            why = "The kernel ended while the check was calling your code."
            return Verdict(task.id, task.title, CRASHED, why)
        except BadMessage as error:
            return Verdict(task.id, task.title, CRASHED, f"What came back was no result: {error}.")

    def _send_figures(self, channel: Channel, task: Task, seed):
        figures = draw_figures(task, seed)
        blobs: list[bytes] = []
        head = {"figures": pack(figures, blobs), "question": task.question.format(**figures)}
        channel.send(head, blobs)
