"""The decode worker's half: room is made first, then keys and values come, then the request goes on.

What comes is first received into memory of its own and then copied into the request's blocks, under a
lock and only while this attempt of the request is wanted. So a request that ends in between can give its
blocks back at once: nobody writes there any more.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from minitransformer.disaggregation.connector import KVConnector, slots_of
from minitransformer.disaggregation.messages import Assign, Loaded, Reserved
from minitransformer.disaggregation.options import Link
from minitransformer.disaggregation.pair import pair_class
from minitransformer.disaggregation.records import BadMessage, NewToken, Part
from minitransformer.paged_cache import PagedKVCache
from minitransformer.serving.request import Request


@dataclass(eq=False)
class Loading:
    """A request whose keys and values are on their way."""

    request: Request
    assign: Assign
    next: int  # position of the first token that has not come
    token: int | None = None  # the one that follows
    nbytes: int = 0
    began_s: float | None = None

    @property
    def complete(self) -> bool:
        return self.token is not None and self.next == len(self.request.tokens)


class KVReceiver(KVConnector):
    """`wake()` is called when a request is complete, from any thread; `tell` with what the router should know
    at once, from the engine's: while the step goes on, others can begin with what it has made room for."""

    def __init__(
        self,
        cache: PagedKVCache,
        link: Link,
        wake: Callable[[], None],
        tell: Callable[[Reserved | Loaded], None],
    ):
        self._cache, self._wake, self._tell = cache, wake, tell
        self._on_device = pair_class(link.transport).on_device
        self._assigned: dict[Request, Assign] = {}
        self._loading: dict[tuple[str, int], Loading] = {}
        self._complete: list[Loading] = []
        self._lock = threading.Lock()
        self.bytes_received, self.busy_s = 0, 0.0

    def room(self, num_tokens: int) -> torch.Tensor:
        """Memory to receive so many tokens: [L, 2, n, G, D]. Raises BadMessage for more than the cache has
        places for."""
        L, N, block, G, D = self._cache.k.shape
        if not 0 < num_tokens <= N * block:
            raise BadMessage(f"{num_tokens} tokens are announced, and the cache has {N * block} places")
        on_host = {"device": "cpu", "pin_memory": self._cache.k.is_cuda}
        place = {"device": self._cache.k.device} if self._on_device else on_host
        return torch.empty(L, 2, num_tokens, G, D, dtype=self._cache.k.dtype, **place)

    # --- scheduler and engine -------------------------------------------------------------------------

    def add(self, request: Request, assign: Assign):
        self._assigned[request] = assign

    def get_num_new_matched_tokens(self, request: Request, num_computed: int) -> int:
        """All that are not cached, unless they are few, or the request was here before: after a
        preemption most of its blocks are still in the prefix cache."""
        missing = len(request.tokens) - num_computed
        is_local = missing < self._assigned[request].local_below or request.num_preemptions > 0
        return 0 if is_local else missing

    def update_state_after_alloc(self, request: Request, blocks: Sequence[int], num_external: int):
        assign = self._assigned[request]
        if num_external > 0:
            with self._lock:
                loading = Loading(request, assign, request.num_computed)
                self._loading[assign.key, assign.attempt] = loading
        if request.num_preemptions == 0:  # told last: what comes in answer finds its place
            self._tell(Reserved(assign.key, assign.attempt, request.num_computed, num_external))

    def get_finished(self) -> list[tuple[Request, int]]:
        with self._lock:
            complete, self._complete = self._complete, []
        for one in complete:
            seconds = time.perf_counter() - one.began_s
            self._tell(Loaded(one.assign.key, one.assign.attempt, one.nbytes, seconds))
        return [(one.request, one.token) for one in complete]

    def request_finished(self, request: Request):
        self.stop_loading(request)
        self._assigned.pop(request, None)

    def stop_loading(self, request: Request):
        """Whatever comes for this request is thrown away from now on."""
        assign = self._assigned.get(request)
        with self._lock:
            if assign is not None:
                self._loading.pop((assign.key, assign.attempt), None)
            self._complete = [one for one in self._complete if one.request is not request]

    # --- what comes, from the threads of the links ----------------------------------------------------

    def check(self, part: Part):
        """Raises BadMessage where a part does not continue what has come of its request."""
        with self._lock:
            one = self._loading.get((part.key, part.attempt))
            if one is None:
                return
            if part.start != one.next or not 0 < part.count <= len(one.request.tokens) - one.next:
                raise BadMessage(
                    f"tokens {part.start} .. {part.start + part.count - 1} of request {part.key} came, and "
                    f"{one.next} .. {len(one.request.tokens) - 1} are due"
                )
            one.began_s = one.began_s or time.perf_counter()

    def write(self, layer: int, staged: torch.Tensor, parts: Sequence[Part]):
        """Copies a layer [2, n, G, D] of all parts to where their requests want it."""
        begin = 0
        for part in parts:
            end = begin + part.count
            with self._lock:
                one = self._loading.get((part.key, part.attempt))
                if one is not None:
                    blocks, size = one.request.blocks, self._cache.block_size
                    slots = slots_of(blocks, part.start, part.start + part.count, size)
                    k, v = staged[:, begin:end].to(self._cache.k.device)
                    self._cache.write(layer, k, v, slots.to(self._cache.k.device))
                    one.nbytes += staged[:, begin:end].nbytes
            begin = end
        self.bytes_received += staged.nbytes

    def arrived(self, part: Part) -> bool:
        """All layers of a part have come. True where its request is complete."""
        return self._update(part.key, part.attempt, lambda one: setattr(one, "next", one.next + part.count))

    def follows(self, new: NewToken) -> bool:
        """The token after those whose keys come. True where its request is complete."""
        return self._update(new.key, new.attempt, lambda one: setattr(one, "token", new.token))

    def _update(self, key: str, attempt: int, change) -> bool:
        with self._lock:
            one = self._loading.get((key, attempt))
            if one is None:
                return False
            change(one)
            if not one.complete:
                return False
            self._complete.append(self._loading.pop((key, attempt)))
        self._wake()
        return True
