"""What an engine must be told so that keys and values can travel: the names are those of vLLM's
`KVConnectorBase_V1`, so that what is learned here can be read there.

An engine has one connector or none. Its methods are called from the engine's thread, in this order:

    scheduler, when a request is admitted    get_num_new_matched_tokens, update_state_after_alloc
    engine, before a forward pass            start_load_kv
    model, around each layer                 wait_for_layer_load, save_kv_layer
    engine, after the forward pass           wait_for_save
    engine, at the end of a step             get_finished
    engine, before blocks are freed          request_finished

Differences from vLLM, which has the scheduler in another process: one object serves both sides, the layer
has a number instead of a name, and what a step does is said by its rows instead of a metadata object.
"""

from collections.abc import Sequence

import torch

from minitransformer.paged_cache import PagedKVCache
from minitransformer.serving.request import Request


class KVConnector:
    """Brings nothing and takes nothing. A prefill worker's connector and a decode worker's fill in
    their half."""

    def get_num_new_matched_tokens(self, request: Request, num_computed: int) -> int:
        """How many tokens beyond the `num_computed` cached ones come from another process: all, or 0."""
        return 0

    def update_state_after_alloc(self, request: Request, blocks: Sequence[int], num_external: int):
        """The request has its blocks; `num_external` tokens of keys and values may be written there."""

    def start_load_kv(self, rows: Sequence[tuple[Request, int]]):
        """A forward pass begins: each request with its number of new tokens."""

    def wait_for_layer_load(self, layer: int):
        """The layer's cache will be read. Here requests whose keys have not come take no part in a step,
        so there is nothing to wait for."""

    def save_kv_layer(self, layer: int, cache: PagedKVCache):
        """The layer's new keys and values are in the cache."""

    def wait_for_save(self):
        """The forward pass is over. The blocks may be freed afterwards, so what leaves must have been
        copied."""

    def get_finished(self) -> list[tuple[Request, int]]:
        """Requests whose keys and values have all come since the last call, each with its next token."""
        return []

    def request_finished(self, request: Request):
        """The request's blocks are about to be freed: nothing may be written there any more."""


def slots_of(blocks: Sequence[int], start: int, end: int, block_size: int) -> torch.Tensor:
    """Where the tokens at positions start .. end - 1 of a request lie in a cache: [end - start]."""
    positions = torch.arange(start, end)
    return torch.tensor(blocks)[positions // block_size] * block_size + positions % block_size
