"""Plain data passes the wire unchanged, and nothing else passes it."""

import math

import numpy as np
import pytest
import torch

from minitransformer.course.builders import tiny_config
from minitransformer.course.wire import BadMessage, NotPlain, pack, unpack


def there_and_back(value):
    blobs: list = []
    return unpack(pack(value, blobs), blobs, lambda handle: handle)


@pytest.mark.parametrize(
    "value",
    [
        None, True, 3, 10**30, -0.5, math.inf, "text", ..., [1, [2]], (1, "a"), {"a": (1,), 2: None},
        {1, 2}, slice(1, None, 2), torch.bfloat16, tiny_config(),
    ],
    ids=repr,
)  # fmt: skip
def test_plain_data_passes_unchanged(value):
    back = there_and_back(value)
    assert back == value and type(back) is type(value)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 0, 3), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.int64, torch.complex64])
def test_tensors_pass_unchanged(shape, dtype):
    value = torch.randn(shape).to(dtype)
    back = there_and_back(value)
    assert back.dtype == dtype and back.shape == value.shape and torch.equal(back, value)


def test_a_transposed_view_arrives_in_its_own_order():
    view = torch.arange(6.0).reshape(2, 3).T
    assert torch.equal(there_and_back(view), view)


def test_numpy_numbers_become_pythons():
    assert type(there_and_back(np.float32(0.5))) is float
    assert type(there_and_back(np.int64(3))) is int
    assert np.array_equal(there_and_back(np.arange(3)), np.arange(3))


@pytest.mark.parametrize("value", [object(), lambda: 1, torch.nn.Linear(1, 1)])
def test_a_check_can_pass_nothing_but_plain_data(value):
    with pytest.raises(NotPlain):
        pack(value, [])


@pytest.mark.parametrize(
    "data",
    [
        {"is": "tensor", "dtype": "float32", "shape": [2**40], "blob": 0},
        {"is": "tensor", "dtype": "float32", "shape": [-1, -2], "blob": 0},
        {"is": "tensor", "dtype": "object", "shape": [2], "blob": 0},
        {"is": "tensor", "dtype": "float32", "shape": [2], "blob": 7},
        {"is": "tensor", "dtype": "float32", "shape": "ab", "blob": 0},
        {"is": "nothing"}, {"is": []}, {}, {"is": "dict", "items": [[[], 1]]}, {"is": "tuple", "items": 3},
        {"is": "built", "name": "os.system", "kwargs": []}, {"is": "object", "id": "x"},
        {"is": "config", "fields": {"is": "dict", "items": [["vocab_size", -1]]}},
    ],
    ids=str,
)  # fmt: skip
def test_what_pack_does_not_make_is_refused(data):
    with pytest.raises(BadMessage):
        unpack(data, [b"12345678"], lambda handle: handle)


def test_deep_nesting_is_refused_on_both_sides():
    deep: list = []
    for _ in range(1000):
        deep = [deep]
    with pytest.raises(NotPlain):
        pack(deep, [])
    with pytest.raises(BadMessage):
        unpack(deep, [], lambda handle: handle)
