"""The two halves of a transfer without engines: caches whose keys and values tests choose."""

import socket
import threading

import torch
from router_pool import spec
from small_models import small_model

from minitransformer import SamplingParams
from minitransformer.disaggregation.connector import slots_of
from minitransformer.disaggregation.fingerprint import fingerprint
from minitransformer.disaggregation.incoming import Incoming
from minitransformer.disaggregation.messages import Assign, Hello, Job
from minitransformer.disaggregation.network import Inbox, Network
from minitransformer.disaggregation.options import Link, Liveness
from minitransformer.disaggregation.outgoing import Outgoing
from minitransformer.disaggregation.pair import Meeting
from minitransformer.disaggregation.receiver import KVReceiver
from minitransformer.disaggregation.records import NewToken
from minitransformer.disaggregation.sender import KVSender
from minitransformer.paged_cache import PagedKVCache
from minitransformer.serving.block_manager import BlockManager
from minitransformer.serving.request import Request

SECRET, HOST = b"of this run", "127.0.0.1"
MODEL = small_model()
LINK = Link(timeout_s=5)


class Decode:
    """A decode worker's half, with a cache of its own block size and no engine."""

    def __init__(self, block_size: int = 4, model=MODEL):
        self.cache = PagedKVCache(model.config, 40, block_size, model.dtype)
        self.blocks = BlockManager(40, block_size)
        self.woken = threading.Event()
        self.told = []
        self.receiver = KVReceiver(self.cache, LINK, wake=self.woken.set, tell=self.told.append)
        self.network = Network(SECRET, Liveness())
        bound = socket.create_server((HOST, 0))
        self.address = bound.getsockname()
        meeting, print_ = Meeting(HOST), fingerprint(model)
        self.network.listen(bound, lambda: Incoming(self.receiver, meeting, print_, SECRET, LINK))

    def reserve(self, key: str, num_tokens: int, attempt: int = 0) -> Request:
        """A request whose blocks wait for all its tokens."""
        ids = list(range(1, num_tokens + 1))
        request = Request(key, ids, SamplingParams(), 4, 0.0)
        self.receiver.add(request, Assign(key, attempt, spec(tuple(ids), 4), 0))
        assert self.blocks.allocate(request, num_tokens)
        external = self.receiver.get_num_new_matched_tokens(request, request.num_computed)
        self.receiver.update_state_after_alloc(request, request.blocks, external)
        request.await_load()
        return request

    def tokens_of(self, request: Request) -> torch.Tensor:
        """Its keys and values in order: [L, 2, tokens, G, D]."""
        return gathered(self.cache, request)


class Prefill:
    """A prefill worker's half, with random numbers for keys and values."""

    def __init__(self, decode: Decode, block_size: int = 4, link: Link = LINK, model=MODEL, announced="gloo"):
        self.cache = PagedKVCache(model.config, 40, block_size, model.dtype)
        generator = torch.Generator().manual_seed(0)
        self.cache._memory.copy_(torch.randn(self.cache._memory.shape, generator=generator))
        self.blocks, self.inbox = BlockManager(40, block_size), Inbox()
        self.network = Network(SECRET, Liveness())
        hello = Hello("prefill-0", fingerprint(model), announced)
        make = lambda job: Outgoing(self.network, self.inbox, (job.host, job.port), HOST, link).start(hello)  # noqa: E731
        self.sender, self.decode = KVSender(self.cache, link, make), decode

    def begin(self, key: str, num_tokens: int, first: int = 0, attempt: int = 0) -> Request:
        ids = list(range(1, num_tokens + 1))
        request = Request(key, ids, SamplingParams(), 4, 0.0)
        assert self.blocks.allocate(request, num_tokens)
        job = Job(key, attempt, spec(tuple(ids), 4), first, "decode-0", *self.decode.address)
        self.sender.add(request, job, 0.0)
        return request

    def compute(self, *rows: tuple[Request, int]):
        """A step of an engine, without the model."""
        self.sender.start_load_kv(rows)
        for layer in range(len(self.cache.k)):
            self.sender.wait_for_layer_load(layer)
            self.sender.save_kv_layer(layer, self.cache)
        self.sender.wait_for_save()
        for request, num_tokens in rows:
            request.advance(num_tokens)

    def hand_over(self, request: Request, token: int):
        sending = self.sender.of(request)
        sending.link.put(NewToken(sending.job.key, sending.job.attempt, 0, token))


def gathered(cache: PagedKVCache, request: Request) -> torch.Tensor:
    slots = slots_of(request.blocks, 0, len(request.prompt_ids), cache.block_size)
    return torch.stack([cache.gather(layer, slots) for layer in range(len(cache.k))])
