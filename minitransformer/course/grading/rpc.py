"""The kernel's end of the line to the grader: answers what the check asks of the learner's objects.

Runs beside the learner's code and is trusted with nothing. The verdict it returns is only for show; the one
that counts never leaves the grader.
"""

import socket

from minitransformer.course.remote import Served, describe
from minitransformer.course.wire import Channel, NotPlain, unpack


def serve_answer(path: str, task_id: str, answer, seed) -> str:
    """Offers `answer` for grading and serves the check until it has its verdict, which is returned."""
    served = Served()
    blobs: list[bytes] = []
    hello = {"request": "check", "task": task_id, "seed": seed, "answer": served.pack(answer, blobs)}
    channel = _connect(path)
    try:
        channel.send(hello, blobs)
        while True:
            head, blobs = channel.receive()
            if "verdict" in head:
                return head["verdict"]
            _send(channel, *served.reply(head, blobs))
    finally:
        channel.close()


def ask_figures(path: str, task_id: str, seed) -> tuple[dict, str]:
    """The figures and the question that the grader draws for this seed."""
    channel = _connect(path)
    try:
        channel.send({"request": "figures", "task": task_id, "seed": seed}, [])
        head, blobs = channel.receive()
        return unpack(head["figures"], blobs, lambda handle: None), head["question"]
    finally:
        channel.close()


def _send(channel: Channel, reply: dict, blobs: list[bytes]):
    try:
        channel.send(reply, blobs)
    except NotPlain as error:  # larger than may pass
        channel.send({"error": describe(error)}, [])


def _connect(path: str) -> Channel:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    return Channel(connection)
