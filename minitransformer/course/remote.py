"""The learner's object as a check sees it: a proxy whose calls run where the learner's code lives.

A check never holds the learner's object itself. In a notebook both sides share a process (LocalLink), in
grading a socket lies between them (grading/rpc.py); the check can't tell, and what works in one works in
the other. `Served` answers on the learner's side; `Proxy` asks on the check's.
"""

import linecache
import traceback
from itertools import islice

from minitransformer.course.builders import Built
from minitransformer.course.expect import CheckFailed
from minitransformer.course.wire import BadMessage, Handle, NotPlain, pack, unpack
from minitransformer.course.words import show_value

STUB = "your code here"
# How a frame of the learner's own cell is told from one of torch or of this package.
CELL_FILES = ("ipykernel_", "<ipython-input", "<answer")
MAX_TEXT = 400
MAX_OBJECTS = 100_000


class LearnerError(CheckFailed):
    """The learner's code raised: `types` names the exception and its bases, the message explains it."""

    def __init__(self, types: list[str], paragraph: str):
        super().__init__(paragraph)
        self.types = types


class MissingAttribute(LearnerError, AttributeError):
    """The learner's object lacks an attribute; also an AttributeError, so that hasattr() works."""


class NoLength(LearnerError, TypeError):
    """The learner's object has no len(); also a TypeError, which list() expects of such an object."""


class NotAttempted(Exception):
    """The check met a stub."""


class Proxy:
    """Calls, attributes, items, len() and iteration, passed on to an object of the learner's."""

    def __init__(self, link, handle: Handle):
        object.__setattr__(self, "_link", link)
        object.__setattr__(self, "_handle", handle)

    def __call__(self, *args, **kwargs):
        return self._link.ask("call", self._handle, list(args), kwargs)

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return self._link.ask("getattr", self._handle, [name])

    def __setattr__(self, name: str, value):
        self._link.ask("setattr", self._handle, [name, value])

    def __getitem__(self, key):
        return self._link.ask("getitem", self._handle, [key])

    def __len__(self) -> int:
        return self._link.ask("len", self._handle)

    def __bool__(self) -> bool:
        return True

    def __iter__(self):
        iterator = self._link.ask("iter", self._handle)
        if not isinstance(iterator, Proxy):
            raise CheckFailed(f"{self!r} can't be iterated over.")
        while len(step := self._link.ask("next", iterator._handle)):
            yield step[0]

    def __repr__(self) -> str:
        return f"an object of type {self._handle.type}"


def keep(answer: Proxy, value) -> Proxy:
    """Puts a copy of `value` beside the learner's code and returns its proxy.

    For what the learner's code is to change in place: pass the proxy as an argument, then read it back
    with `fetch`.
    """
    return answer._link.ask("keep", None, [value])


def fetch(proxy):
    """The plain data behind a proxy that `keep` returned, as it is now."""
    return proxy._link.ask("fetch", proxy._handle) if isinstance(proxy, Proxy) else proxy


class Link:
    """Asks the learner's side and turns its replies into values, proxies or exceptions.

    A subclass says in `exchange` how (head, blobs) reaches the other side and the reply comes back.
    """

    def ask(self, op: str, handle: Handle | None = None, args: list = (), kwargs: dict | None = None):
        blobs: list[bytes] = []
        head = {
            "op": op,
            "on": None if handle is None else handle.id,
            "args": self._pack(list(args), blobs),
            "kwargs": self._pack(dict(kwargs or {}), blobs),
        }
        reply, blobs = self.exchange(head, blobs)
        if "error" in reply:
            raise _error(reply["error"], op, _shown(args, kwargs or {}))
        return self.unpack(reply.get("value"), blobs)

    def unpack(self, data, blobs: list[bytes]):
        return unpack(data, blobs, lambda handle: Proxy(self, handle))

    def _pack(self, value, blobs: list[bytes]):
        return pack(_with_handles(value), blobs)

    def exchange(self, head: dict, blobs: list[bytes]) -> tuple[dict, list[bytes]]:
        raise NotImplementedError


class LocalLink(Link):
    """Both sides in one process; values are packed and unpacked all the same, so each has its copy."""

    def __init__(self, served: "Served"):
        self.served = served

    def exchange(self, head, blobs):
        return self.served.reply(head, blobs)


class Served:
    """The learner's side: keeps the learner's objects and does with them what the check asks."""

    def __init__(self):
        self.objects: list = []

    def pack(self, value, blobs: list[bytes]):
        return pack(value, blobs, self._keep)

    def reply(self, head: dict, blobs: list[bytes]) -> tuple[dict, list[bytes]]:
        """Does one request. Exceptions of the learner's code become an "error" reply."""
        out: list[bytes] = []
        try:
            args = unpack(head["args"], blobs, self._object, Built.build)
            kwargs = unpack(head["kwargs"], blobs, self._object, Built.build)
            target = None if head["on"] is None else self.objects[head["on"]]
            value = self._do(head["op"], target, args, kwargs)
            return {"value": self.pack(value, out)}, out
        except (Exception, SystemExit) as error:
            return {"error": describe(error)}, []

    def _do(self, op: str, target, args: list, kwargs: dict):
        if op == "call":
            return target(*args, **kwargs)
        if op == "getattr":
            return getattr(target, args[0])
        if op == "setattr":
            return setattr(target, *args)
        if op == "getitem":
            return target[args[0]]
        if op == "len":
            return len(target)
        if op == "iter":
            return self._keep(iter(target))
        if op == "next":
            return list(islice(target, 1))
        if op == "keep":
            return self._keep(args[0])
        if op == "fetch":
            return target
        raise BadMessage(f"no such request: {op!r}")

    def _keep(self, value) -> Handle:
        if len(self.objects) >= MAX_OBJECTS:
            raise NotPlain("too many objects returned")
        self.objects.append(value)
        return Handle(len(self.objects) - 1, _type_name(value))

    def _object(self, handle: Handle):
        return self.objects[handle.id]


def describe(error: BaseException) -> dict:
    """An exception as plain data: its types, its message, and the line of the learner's cell."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if any(mark in f.filename for mark in CELL_FILES)]
    line = own[-1].lineno if own else None
    return {
        "types": [t.__name__ for t in type(error).__mro__[:-1]],
        "message": str(error)[:MAX_TEXT],
        "line": line,
        "text": linecache.getline(own[-1].filename, line).strip()[:MAX_TEXT] if own else "",
    }


def _error(error: dict, op: str, arguments: str) -> Exception:
    """The exception for the check's side. The other side may be hostile: nothing is taken on trust."""
    types = [str(t)[:100] for t in error.get("types", [])][:20] or ["an exception"]
    message, text = (
        str(error.get("message", ""))[:MAX_TEXT].rstrip(". \n"),
        str(error.get("text", ""))[:MAX_TEXT],
    )
    if "NotImplementedError" in types and message.startswith(STUB):
        return NotAttempted()
    line = error.get("line")
    where = f" at line {line} of its cell: `{text}`" if isinstance(line, int) and text else ""
    if not where and types[0] == "TypeError" and op == "call":
        where = " (is the signature as the task asks?)"
    called = f", called with {arguments}," if op == "call" else ""
    paragraph = f"Your code{called} raised {types[0]}: {message}{where}."
    if op == "getattr" and "AttributeError" in types:
        return MissingAttribute(types, paragraph)
    if op == "len" and "TypeError" in types:
        return NoLength(types, paragraph)
    return LearnerError(types, paragraph)


def _shown(args: list, kwargs: dict) -> str:
    named = [f"{name}={show_value(value)}" for name, value in kwargs.items()]
    text = ", ".join([show_value(value) for value in args] + named) or "no arguments"
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "..."


def _with_handles(value):
    """Proxies replaced by their handles, inside lists, tuples and dicts too."""
    if isinstance(value, Proxy):
        return value._handle
    if type(value) in (list, tuple):
        return type(value)(_with_handles(v) for v in value)
    if type(value) is dict:
        return {k: _with_handles(v) for k, v in value.items()}
    return value


def _type_name(value) -> str:
    return f"class {value.__name__}" if isinstance(value, type) else type(value).__name__
