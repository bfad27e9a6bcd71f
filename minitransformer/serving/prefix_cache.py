"""Which block holds which text: full blocks found again by what they and everything before them say.

A block's keys depend on all tokens before it, so its name is a hash of its own tokens and of the name of
the block before it: a chain. Two requests with the same first blocks have the same first names (as in
vLLM's automatic prefix caching). Knows nothing of requests and counts no references.
"""

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b


def extend_chain(hashes: list[bytes], tokens: Sequence[int], block_size: int):
    """Appends the names of the full blocks of `tokens` that `hashes` does not have yet."""
    for i in range(len(hashes), len(tokens) // block_size):
        block = array("q", tokens[i * block_size : (i + 1) * block_size])
        # 128 bits: that two texts share a name by chance won't happen, and nobody can make it happen.
        hashes.append(blake2b((hashes[-1] if hashes else b"") + block.tobytes(), digest_size=16).digest())


class PrefixCache:
    """Names of blocks, and those of them that nobody uses: the least recently used is given away first."""

    def __init__(self):
        self._block_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # oldest first

    @property
    def num_idle(self) -> int:
        return len(self._idle)

    def __contains__(self, block: int) -> bool:
        return block in self._hash_of

    def find(self, hashes: Sequence[bytes]) -> list[int]:
        """The blocks of the longest beginning of a chain that is here."""
        found = []
        for name in hashes:
            if name not in self._block_of:
                break
            found.append(self._block_of[name])
        return found

    def insert(self, name: bytes, block: int):
        """Names a block that is full. A text that another block holds already keeps that block."""
        if name not in self._block_of:
            assert block not in self._hash_of, f"block {block} holds another text"
            self._block_of[name], self._hash_of[block] = block, name

    def forget(self, block: int):
        """Takes a block's name away, because it will be written."""
        self._idle.pop(block, None)
        name = self._hash_of.pop(block, None)
        if name is not None:
            del self._block_of[name]

    def park(self, block: int):
        """Nobody uses this block now; it stays until its memory is needed."""
        assert block in self._hash_of and block not in self._idle
        self._idle[block] = None

    def wake(self, block: int):
        """A parked block is in use again."""
        del self._idle[block]

    def evict(self) -> int:
        """Gives up the block that has been parked longest."""
        block = next(iter(self._idle))
        self.forget(block)
        return block
