"""Who holds which block of the paged cache: a free list, reference counts, copy on write.

A block is in one of three states: in use by one request or more (its count says by how many), parked in
the prefix cache, or on the free list. Knows nothing of the tensors behind the numbers: what must be
copied is noted in `copies`, and the engine does it before the next forward pass.
"""

from minitransformer.serving.prefix_cache import PrefixCache, extend_chain
from minitransformer.serving.request import Request


class BlockManager:
    """Deals out `num_blocks` blocks of `block_size` tokens, and takes them back."""

    def __init__(self, num_blocks: int, block_size: int, prefix_caching: bool = True):
        self.num_blocks, self.block_size = num_blocks, block_size
        self.ref_counts = [0] * num_blocks
        self.copies: list[tuple[int, int]] = []  # (from, to)
        self.prefix_cache = PrefixCache() if prefix_caching else None
        self._free = list(range(num_blocks - 1, -1, -1))

    @property
    def num_free(self) -> int:
        """Blocks that a request could have now, those parked in the prefix cache included."""
        return len(self._free) + (self.prefix_cache.num_idle if self.prefix_cache else 0)

    @property
    def parked(self) -> list[int]:
        """Blocks that nobody uses, kept by the prefix cache."""
        cache = self.prefix_cache
        return [b for b, n in enumerate(self.ref_counts) if n == 0 and b in cache] if cache else []

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def allocate(self, request: Request, num_tokens: int, spare: int = 0) -> bool:
        """Starts a waiting request with blocks for `num_tokens`, shared where the prefix cache has them.

        False, and nothing has changed, where fewer than `spare` blocks would stay free.
        """
        shared = self._share_prefix(request)
        needed = self.blocks_for(num_tokens) - len(shared)
        # The last token must be computed even if the cache has all: its logits give the next one.
        num_cached = min(len(shared) * self.block_size, len(request.tokens) - 1)
        rewrites_last = num_cached < len(shared) * self.block_size
        if self.num_free < needed + spare + (rewrites_last and self.ref_counts[shared[-1]] > 1):
            self._release(shared)
            return False
        if rewrites_last:
            shared[-1] = self._writable(shared[-1])
        request.start(shared + [self._take() for _ in range(needed)], num_cached)
        return True

    def grow(self, request: Request) -> bool:
        """Gives a running request the block that its last token may need; False where none is left."""
        if self.blocks_for(len(request.tokens)) > len(request.blocks):
            if self.num_free == 0:
                return False
            request.blocks.append(self._take())
        assert self.ref_counts[request.blocks[request.num_computed // self.block_size]] == 1
        return True

    def deallocate(self, request: Request):
        """Takes back all blocks of a request, right before it is preempted or finished."""
        self._release(request.blocks)
        request.blocks = []

    def name_full_blocks(self, request: Request, num_new: int):
        """Makes blocks that the last `num_new` computed tokens filled known to the prefix cache."""
        if self.prefix_cache is None:
            return
        full, before = (n // self.block_size for n in (request.num_computed, request.num_computed - num_new))
        if full > before:
            extend_chain(request.block_hashes, request.tokens, self.block_size)
        for i in range(before, full):
            self.prefix_cache.insert(request.block_hashes[i], request.blocks[i])

    def _share_prefix(self, request: Request) -> list[int]:
        """The blocks that hold the request's first tokens already, now also held by the request."""
        if self.prefix_cache is None:
            return []
        extend_chain(request.block_hashes, request.tokens, self.block_size)
        blocks = self.prefix_cache.find(request.block_hashes)
        for block in blocks:
            if self.ref_counts[block] == 0:
                self.prefix_cache.wake(block)
            self.ref_counts[block] += 1
        return blocks

    def _take(self) -> int:
        block = self._free.pop() if self._free else self.prefix_cache.evict()
        assert self.ref_counts[block] == 0
        self.ref_counts[block] = 1
        return block

    def _release(self, blocks: list[int]):
        """Last block first: it is of use only to those who have all before it, so it may go first."""
        for block in reversed(blocks):
            assert self.ref_counts[block] > 0, f"block {block} is freed twice"
            self.ref_counts[block] -= 1
            if self.ref_counts[block] == 0:
                self._put_away(block)

    def _put_away(self, block: int):
        if self.prefix_cache is not None and block in self.prefix_cache:
            self.prefix_cache.park(block)
        else:
            self._free.append(block)

    def _writable(self, block: int) -> int:
        """The block itself where one request holds it, nameless from now on; else a copy for that one."""
        if self.ref_counts[block] == 1:
            self.prefix_cache.forget(block)
            return block
        copy = self._take()
        self._release([block])
        self.copies.append((block, copy))
        return copy
