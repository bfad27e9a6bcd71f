"""What lesson 10 builds in its cells sends and receives what the package sends and receives."""

import json
import queue

import pytest
import torch
from lesson_code import code_cells, definitions
from router_pool import spec
from small_models import random_ids, small_model

from minitransformer import SamplingParams, generate, save_pretrained
from minitransformer.disaggregation.connector import slots_of
from minitransformer.disaggregation.messages import Job
from minitransformer.disaggregation.options import Link
from minitransformer.disaggregation.sender import KVSender
from minitransformer.paged_cache import PagedKVCache
from minitransformer.serving.request import Request

MODEL = small_model(seed=3).double()
CONFIG = MODEL.config
PER_TOKEN = 2 * CONFIG.num_hidden_layers * CONFIG.kv_size * 8


class Wire:
    """torch.distributed between two ranks of one process: what one sends is what the other receives."""

    def __init__(self):
        self.sent: queue.Queue = queue.Queue()

    def init_process_group(self, *args, **kwargs):
        pass

    def send(self, tensor, to: int):
        self.sent.put(tensor.clone())

    def isend(self, tensor, to: int):
        self.send(tensor, to)
        return self

    def wait(self):
        pass

    def recv(self, tensor, source: int):
        tensor.copy_(self.sent.get_nowait())


@pytest.fixture
def lesson() -> dict:
    """The lesson's functions and classes over a small model and a wire; nothing else of it is run."""
    names = definitions(code_cells("10_disaggregation"))
    names.update(exact=MODEL, config=CONFIG, dist=Wire())  # where their code looks for names
    return names


def prompt_of(n: int, seed: int, shared: int = 0) -> list[int]:
    return random_ids(1, shared, seed=1)[0].tolist() + random_ids(1, n - shared, seed=seed)[0].tolist()


def started(side, n: int, seed: int = 0, max_tokens: int = 5) -> Request:
    request = Request("P", prompt_of(n, seed), SamplingParams(), max_tokens, 0.0)
    side.start(request)
    return request


@pytest.mark.parametrize(("start", "end", "size"), [(0, 1, 1), (0, 9, 4), (5, 17, 4), (16, 17, 8)])
def test_tokens_are_looked_for_in_the_same_slots(lesson, start, end, size):
    blocks = torch.randperm(40)[: -(-end // size)].tolist()
    assert torch.equal(lesson["slots_of"](blocks, start, end, size), slots_of(blocks, start, end, size))


def test_what_is_gathered_is_what_the_package_gathers(lesson):
    cache = PagedKVCache(CONFIG, 7, 3, dtype=torch.float64)
    cache.k.copy_(torch.randn(cache.k.shape)), cache.v.copy_(torch.randn(cache.v.shape))
    slots = torch.randperm(21)[:11]
    for layer in range(CONFIG.num_hidden_layers):
        assert torch.equal(lesson["gather"](cache, layer, slots), cache.gather(layer, slots))


@pytest.mark.parametrize(("here_size", "there_size"), [(4, 4), (16, 3), (1, 8)])
@pytest.mark.parametrize("shared", [0, 16])
def test_a_request_that_is_handed_over_gets_the_tokens_it_gets_alone(lesson, here_size, there_size, shared):
    here, there = (lesson["Side"](size, num_blocks=60) for size in (here_size, there_size))
    for seed, n in [(10, 20), (11, 25), (12, 17 + shared)]:
        prompt = prompt_of(n, seed, shared)
        tokens, travelled = lesson["hand_over"](here, there, prompt, 6)
        assert tokens == generate(MODEL, torch.tensor([prompt]), 6)[0].tolist()
        cached = 0 if seed == 10 else shared // there_size * there_size
        assert travelled == (n - cached) * PER_TOKEN
        assert here.blocks.num_free == there.blocks.num_free == 60


class Recorded:
    """A link of the package's sender that keeps what it is given."""

    is_closed, bytes_sent, busy_s = False, 0, 0.0

    def __init__(self):
        self.tensors, self.parts = [], ()

    def begin(self, parts):
        self.parts = parts

    def put(self, staged):
        self.tensors.append(staged.get())


@pytest.mark.parametrize("first", [0, 5])
def test_layer_by_layer_the_lesson_sends_what_the_package_sends(lesson, first):
    ours, theirs = lesson["Side"](4), lesson["Side"](4)
    one, other = (started(side, 13) for side in (ours, theirs))
    ours.compute(one, lesson["LayerSender"](one, first, 13, 4))
    link = Recorded()
    sender = KVSender(theirs.cache, Link(), lambda job: link)
    sender.add(other, Job("P", 0, spec(tuple(other.prompt_ids), 5), first, "decode-0", "127.0.0.1", 1), 0.0)
    sender.start_load_kv([(other, 13)])
    theirs.compute(other, sender)
    sent = [lesson["dist"].sent.get_nowait() for _ in range(CONFIG.num_hidden_layers)]
    assert len(link.tensors) == len(sent)
    for mine, packages in zip(sent, link.tensors, strict=True):
        assert torch.equal(mine, packages) and mine.shape == (2, 13 - first, 2, CONFIG.head_dim)
    assert (link.parts[0].start, link.parts[0].count) == (first, 13 - first)


def test_the_other_process_goes_on_with_the_tokens_of_generate(lesson, tmp_path, capsys):
    save_pretrained(MODEL, tmp_path)
    side, wire = lesson["Side"](4), lesson["dist"]
    request = started(side, 21, seed=9, max_tokens=7)
    wire.send(torch.tensor([21, 7]), 1)
    sender = lesson["LayerSender"](request, 0, 21, 4)
    first = side.compute(request, sender)
    assert sender.wait_for_save() == 21 * PER_TOKEN
    wire.send(torch.tensor([first]), 1)
    lesson["decode_worker"](tmp_path, 0)
    answer = json.loads(capsys.readouterr().out)
    alone = generate(MODEL, torch.tensor([request.prompt_ids]), 7)[0].tolist()
    assert request.prompt_ids + answer == alone and wire.sent.empty()
