"""Messages as bytes: a length, then JSON. Reads strictly; knows nothing of sockets.

frame = 4 bytes, big endian: the length of what follows | {"type": "Drop", "key": "7", "attempt": 1}
"""

import json
import math
import types
import typing
from dataclasses import fields, is_dataclass

from minitransformer.disaggregation.messages import Message
from minitransformer.disaggregation.records import BadMessage

LARGEST_FRAME = 16 * 2**20  # bytes; a million tokens take about 8
LENGTH = 4
KINDS = {kind.__name__: kind for kind in typing.get_args(Message)}


def encode(message: Message) -> bytes:
    """The frame of a message."""
    return frame({"type": type(message).__name__, **_plain(message)})


def frame(content: dict) -> bytes:
    body = json.dumps(content, separators=(",", ":"), allow_nan=False).encode()
    if len(body) > LARGEST_FRAME:
        raise ValueError(f"a message of {len(body)} bytes passes the {LARGEST_FRAME} that a frame may have")
    return len(body).to_bytes(LENGTH, "big") + body


def parse(body: bytes) -> Message:
    """The message in a frame's body. Raises BadMessage for anything else."""
    content = parse_object(body)
    kind = content.pop("type", None)
    if not isinstance(kind, str) or kind not in KINDS:
        raise BadMessage(f"a message of an unknown kind: {kind!r:.80}")
    return _build(KINDS[kind], content, kind)


def parse_object(body: bytes) -> dict:
    """The JSON object in a frame's body. Raises BadMessage."""
    try:
        content = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BadMessage(f"a frame of {len(body)} bytes holds no JSON: {error!s:.80}") from None
    if not isinstance(content, dict):
        raise BadMessage(f"a frame holds a {type(content).__name__} instead of an object")
    return content


class Frames:
    """Takes bytes as they come, and gives out whole frames' bodies.

    A frame longer than `largest` is refused by its first four bytes: nothing of it is kept.
    """

    def __init__(self, largest: int = LARGEST_FRAME):
        self.largest = largest
        self._buffer = bytearray()

    def push(self, data: bytes):
        self._buffer += data

    def pop(self) -> bytes | None:
        """The next whole frame's body; None where it has not all come yet. Raises BadMessage."""
        if len(self._buffer) < LENGTH:
            return None
        size = int.from_bytes(self._buffer[:LENGTH], "big")
        if size > self.largest:
            raise BadMessage(f"a frame of {size} bytes is announced, and {self.largest} are allowed")
        if len(self._buffer) < LENGTH + size:
            return None
        body = bytes(self._buffer[LENGTH : LENGTH + size])
        del self._buffer[: LENGTH + size]
        return body


def _plain(value):
    """Dataclasses as dicts. (dataclasses.asdict copies each number of a prompt for itself.)"""
    if is_dataclass(value):
        return {name: _plain(getattr(value, name)) for name in _HINTS[type(value)]}
    if isinstance(value, tuple) and value and is_dataclass(value[0]):
        return [_plain(item) for item in value]
    return value


def _refuse_constant(name: str):
    raise ValueError(f"{name} is no number")


def _build(cls, content, where: str):
    """A dataclass from a JSON object with exactly its fields."""
    hints = _HINTS[cls]
    if not isinstance(content, dict) or content.keys() != hints.keys():
        has = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise BadMessage(f"{where} needs the fields {sorted(hints)}, got {has!s:.200}")
    values = {name: _value(hint, content[name], f"{where}.{name}") for name, hint in hints.items()}
    try:
        return cls(**values)
    except ValueError as error:
        raise BadMessage(f"{where}: {error}") from None


def _value(hint, value, where: str):
    """The value, if it is what the hint says. Raises BadMessage."""
    if hint is float:
        if type(value) in (int, float) and math.isfinite(value):
            return float(value)
    elif hint in (int, str, bool):
        if type(value) is hint:
            return value
    elif is_dataclass(hint):
        return _build(hint, value, where)
    elif isinstance(hint, types.UnionType):  # X | None
        return None if value is None else _value(typing.get_args(hint)[0], value, where)
    else:
        item = typing.get_args(hint)[0]  # tuple[item, ...]
        if isinstance(value, list):
            if item is int and all(type(x) is int for x in value):  # the many tokens of a prompt: no detour
                return tuple(value)
            return tuple(_value(item, x, f"{where}[{i}]") for i, x in enumerate(value))
    raise BadMessage(f"{where} must be {hint}, got {value!r:.80}")


def _with_parts(cls) -> dict:
    """The types of a dataclass' fields, and of those that they are made of, by class."""
    hints = typing.get_type_hints(cls)
    found = {cls: {field.name: hints[field.name] for field in fields(cls)}}
    for hint in found[cls].values():
        for part in (hint, *typing.get_args(hint)):
            if is_dataclass(part):
                found |= _with_parts(part)
    return found


_HINTS = {cls: hints for kind in KINDS.values() for cls, hints in _with_parts(kind).items()}
