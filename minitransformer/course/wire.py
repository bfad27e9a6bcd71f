"""Plain data between a check and the learner's code: packing to JSON and raw bytes, never pickle.

Numbers, strings, None, `...`, lists, tuples, dicts, sets, slices, tensors, arrays, dtypes and ModelConfig
pass by value. Objects that the learner's code made stay where they are and pass as handles. What arrives
may come from hostile code, so unpacking checks every size and builds nothing but the types above.
"""

import json
import math
import numbers
import socket
import struct
from dataclasses import asdict, dataclass

import numpy as np
import torch

from minitransformer.config import ModelConfig
from minitransformer.course.builders import Built

MAX_BYTES = 256 * 2**20  # one message, tensors included
MAX_DEPTH = 40  # of lists within lists
PLAIN = (bool, int, float, str)
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
        torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128,
    )
}  # fmt: skip


class BadMessage(ValueError):
    """What arrived is not a message that `pack` makes."""


class NotPlain(TypeError):
    """A value that cannot pass: neither plain data nor (on this side) allowed as a handle."""


@dataclass(frozen=True)
class Handle:
    """A stand-in for an object on the learner's side."""

    id: int
    type: str


def pack(value, blobs: list[bytes], keep=None, depth: int = 0):
    """What json.dumps takes for `value`; the bytes of tensors go to `blobs`.

    `keep(object) -> Handle` is asked for whatever is not plain data; without it NotPlain is raised.
    """
    if depth > MAX_DEPTH:
        raise NotPlain(f"data nested more than {MAX_DEPTH} deep")
    if value is None or type(value) in PLAIN:
        return value
    if isinstance(value, list) and type(value) is list:
        return [pack(v, blobs, keep, depth + 1) for v in value]
    if type(value) in (tuple, set, frozenset, torch.Size):
        kind = "set" if isinstance(value, (set, frozenset)) else "tuple"
        return {"is": kind, "items": [pack(v, blobs, keep, depth + 1) for v in value]}
    if type(value) is dict:
        items = [[pack(v, blobs, keep, depth + 1) for v in pair] for pair in value.items()]
        return {"is": "dict", "items": items}
    return _pack_object(value, blobs, keep, depth)


def _pack_object(value, blobs: list[bytes], keep, depth: int):
    if isinstance(value, torch.Tensor) and value.device.type != "meta":
        return _pack_tensor(value, blobs)
    if isinstance(value, np.ndarray) and value.dtype.name in DTYPES:
        return {"is": "array", "of": _pack_tensor(torch.from_numpy(np.ascontiguousarray(value)), blobs)}
    if isinstance(value, torch.dtype):
        return {"is": "dtype", "name": str(value).removeprefix("torch.")}
    if value is ...:
        return {"is": "ellipsis"}
    if isinstance(value, slice):
        return {"is": "slice", "items": [value.start, value.stop, value.step]}
    if isinstance(value, ModelConfig):
        return {"is": "config", "fields": pack(asdict(value), blobs, None, depth + 1)}
    if isinstance(value, Built):
        return {"is": "built", "name": value.name, "kwargs": pack(value.kwargs, blobs, None, depth + 1)}
    if isinstance(value, numbers.Integral):  # subclasses and numpy's numbers become Python's
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Handle):
        return {"is": "object", "id": value.id, "type": value.type}
    if keep is None:
        raise NotPlain(
            f"a check can pass plain data, tensors, dtypes, ModelConfig and Built(...), not {type(value)}"
        )
    return pack(keep(value), blobs)


def _pack_tensor(value: torch.Tensor, blobs: list[bytes]) -> dict:
    value = value.detach()
    value = (value if value.layout == torch.strided else value.to_dense()).cpu().contiguous()
    name = str(value.dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise NotPlain(f"a tensor of dtype {name} cannot pass")
    flat = value.resolve_conj().resolve_neg().reshape(-1)
    blobs.append(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return {"is": "tensor", "dtype": name, "shape": list(value.shape), "blob": len(blobs) - 1}


def unpack(data, blobs: list[bytes], handle, build=None, depth: int = 0):
    """The value that `pack` was given; `handle(Handle)` says what stands for an object.

    `build(Built)` makes what a check asks for by name; without it, on the check's side, such a wish is
    refused. Raises BadMessage for anything that `pack` does not make.
    """
    if depth > MAX_DEPTH:
        raise BadMessage("nested too deep")
    if data is None or isinstance(data, PLAIN):
        return data

    def inner(items):
        return [unpack(v, blobs, handle, build, depth + 1) for v in items]

    if isinstance(data, list):
        return inner(data)
    try:
        if data["is"] == "object":
            return handle(Handle(int(data["id"]), str(data["type"])[:100]))
        if data["is"] == "built" and build is not None:
            return build(Built(data["name"], **inner([data["kwargs"]])[0]))
        return UNPACK[data["is"]](data, inner, blobs)
    except BadMessage:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        raise BadMessage(f"not a packed value ({type(error).__name__}: {error})") from None


def _unpack_tensor(data: dict, blobs: list[bytes]) -> torch.Tensor:
    dtype, shape = DTYPES[data["dtype"]], data["shape"]
    blob = blobs[data["blob"]]
    if len(shape) > 64 or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise BadMessage(f"no shape of a tensor: {str(shape)[:100]}")
    if math.prod(shape) * dtype.itemsize != len(blob):
        raise BadMessage(f"{len(blob)} bytes for a tensor of shape {shape}")
    if not blob:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(blob), dtype=dtype).reshape(shape)


UNPACK = {
    "tuple": lambda d, inner, blobs: tuple(inner(d["items"])),
    "set": lambda d, inner, blobs: set(inner(d["items"])),
    "dict": lambda d, inner, blobs: dict(inner(pair) for pair in d["items"]),
    "tensor": lambda d, inner, blobs: _unpack_tensor(d, blobs),
    "array": lambda d, inner, blobs: _unpack_tensor(d["of"], blobs).numpy(),
    "dtype": lambda d, inner, blobs: DTYPES[d["name"]],
    "ellipsis": lambda d, inner, blobs: ...,
    "slice": lambda d, inner, blobs: slice(*d["items"]),
    "config": lambda d, inner, blobs: ModelConfig(**inner([d["fields"]])[0]),
}


class Channel:
    """Messages over a stream socket: a length, a JSON head, the blobs.

    `receive` raises BadMessage for what is no message, EOFError when the other side is gone, and
    TimeoutError by the socket's own time limit.
    """

    def __init__(self, connection: socket.socket):
        self.connection = connection

    def send(self, head: dict, blobs: list[bytes]):
        text = json.dumps({"head": head, "blobs": [len(b) for b in blobs]}).encode()
        size = len(text) + sum(map(len, blobs))
        if size > MAX_BYTES:
            raise NotPlain(f"{size:,} bytes at once; at most {MAX_BYTES:,} may pass")
        self.connection.sendall(struct.pack("!Q", len(text)) + text + b"".join(blobs))

    def receive(self) -> tuple[dict, list[bytes]]:
        (size,) = struct.unpack("!Q", self._read(8))
        if size > MAX_BYTES:
            raise BadMessage(f"a message of {size:,} bytes")
        try:
            message = json.loads(self._read(size))
            head, sizes = message["head"], message["blobs"]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise BadMessage(f"not a message ({type(error).__name__})") from None
        if not isinstance(head, dict) or not isinstance(sizes, list):
            raise BadMessage("not a message")
        if not all(type(n) is int and n >= 0 for n in sizes) or sum(sizes) > MAX_BYTES:
            raise BadMessage("blobs of impossible size")
        return head, [self._read(n) for n in sizes]

    def close(self):
        self.connection.close()

    def _read(self, size: int) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            part = self.connection.recv(min(size - len(parts), 2**20))
            if not part:
                raise EOFError("the other side has gone")
            parts += part
        return bytes(parts)
