"""A KV cache in blocks: the memory that many sequences of any length share (arXiv 2309.06180, section 4).

The cache is only memory. Which block belongs to which sequence is a block table, and whoever keeps the
tables (minitransformer/serving/block_manager.py) says for every step where tokens are written and read.
"""

from collections.abc import Sequence

import torch

from minitransformer.config import ModelConfig


class PagedKVCache:
    """`num_blocks` blocks of `block_size` token slots for each layer.

    `k` and `v` are [L, N, block, G, D]. In memory a head's keys of one block lie in one piece, because
    attention reads them head by head. Token slots are numbered through: slot i is place i % block_size
    of block i // block_size.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_blocks: int,
        block_size: int = 16,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        """Raises ValueError for a size below one."""
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"a cache needs room: num_blocks={num_blocks}, block_size={block_size}")
        heads, layers = config.num_key_value_heads, config.num_hidden_layers
        shape = (layers, 2, num_blocks, heads, block_size, config.head_dim)
        # Zeros, not rubbish: padding is read and given the weight 0, and 0 times NaN would be NaN.
        self._memory = torch.zeros(shape, dtype=dtype, device=device)
        self.k, self.v = self._memory[:, 0].transpose(2, 3), self._memory[:, 1].transpose(2, 3)
        self._copies = torch.empty(0, dtype=dtype, device=device)  # what `read` fills, again and again

    @property
    def num_blocks(self) -> int:
        return self.k.shape[1]

    @property
    def block_size(self) -> int:
        return self.k.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks, used or not; without the room that `read` takes for its copies."""
        return self._memory.nbytes

    @staticmethod
    def block_nbytes(config: ModelConfig, block_size: int, dtype: torch.dtype) -> int:
        """Bytes of one block in all layers: 2 * L * block * G * D * bytes a number."""
        return 2 * config.num_hidden_layers * block_size * config.kv_size * dtype.itemsize

    def require_model(self, config: ModelConfig, dtype: torch.dtype):
        """Raises ValueError unless the cache was made for a model of this shape and dtype."""
        made_for = (self.k.shape[0], self.k.shape[3], self.k.shape[4], self.k.dtype)
        model = (config.num_hidden_layers, config.num_key_value_heads, config.head_dim, dtype)
        if made_for != model:
            raise ValueError(
                f"the cache was made for (layers, key/value heads, head_dim, dtype) {made_for}, "
                f"but the model has {model}"
            )

    def write(self, layer: int, k: torch.Tensor, v: torch.Tensor, slots: torch.Tensor):
        """Puts k, v [n, G, D] of one layer into `slots` [n]."""
        where = slots // self.block_size, slots % self.block_size
        self.k[layer][where], self.v[layer][where] = k.detach(), v.detach()

    def gather(self, layer: int, slots: torch.Tensor) -> torch.Tensor:
        """Keys and values of one layer in `slots` [n], in one piece: [2, n, G, D]. What `write` takes."""
        where = slots // self.block_size, slots % self.block_size
        return torch.stack((self.k[layer][where], self.v[layer][where]))

    def places(self, block_table: torch.Tensor) -> torch.Tensor:
        """Where `read` finds the blocks of each row, block_table [P, M]: [2, P, G, M], in every layer."""
        N, G = self.num_blocks, self.k.shape[3]
        heads = torch.arange(G, device=block_table.device)[:, None]
        keys = block_table[:, None] * G + heads  # [P, G, M]: numbers of heads of blocks
        return torch.stack((keys, keys + N * G))

    def read(self, layer: int, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the blocks at `places`, row by row in order: [P, G, M * block, D] each.

        They are copies, overwritten by the next call: to ask for new memory each time would cost more
        than to fill it.
        """
        (_, P, G, M), (block, D) = places.shape, self._memory.shape[-2:]
        copies = self._room(places.numel() * block * D)
        of_heads = self._memory[layer].flatten(0, 2)  # [2 * N * G, block, D]
        torch.index_select(of_heads, 0, places.flatten(), out=copies.view(-1, block, D))
        k, v = copies.view(2, P, G, M * block, D)
        return k, v

    def _room(self, size: int) -> torch.Tensor:
        if self._copies.numel() < size:
            with torch.inference_mode(False):  # a tensor made within could not be written outside of it
                self._copies = torch.empty(size, dtype=self.k.dtype, device=self.k.device)
        return self._copies[:size]

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]):
        """Copies whole blocks, all layers: (from, to), ... No block may be written twice."""
        if not pairs:
            return
        source, target = torch.tensor(pairs, device=self.k.device).T
        self._memory.index_copy_(2, target, self._memory.index_select(2, source))
