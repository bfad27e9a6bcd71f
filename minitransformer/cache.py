"""Where the keys and values of past tokens live: what prefill writes and decode reads.

The cache owns the position of its sequences (`seq_len`). It knows nothing of models or sampling.
"""

import torch

from minitransformer.config import ModelConfig


class CacheFull(ValueError):
    """There is no room left for the tokens that were to be written."""


class KVCache:
    """A contiguous cache: one row of `max_seq_len` slots a sequence, reserved when it is made.

    Every row holds the same number of tokens. Slots behind `seq_len` hold rubbish that nothing reads.

    Layout: `k` and `v` are [L, B, G, max_seq_len, D], so that what one head reads in a decode step
    lies in one piece.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        max_seq_len: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        """Raises ValueError for a size below one.

        More slots than the model's window are only memory: it is the model that refuses positions
        beyond `max_position_embeddings`.
        """
        if batch_size < 1 or max_seq_len < 1:
            raise ValueError(f"a cache needs room: batch_size={batch_size}, max_seq_len={max_seq_len}")
        heads, layers = config.num_key_value_heads, config.num_hidden_layers
        shape = (layers, batch_size, heads, max_seq_len, config.head_dim)
        self.k = torch.empty(shape, dtype=dtype, device=device)
        self.v = torch.empty(shape, dtype=dtype, device=device)
        self.seq_len = 0

    @property
    def batch_size(self) -> int:
        return self.k.shape[1]

    @property
    def max_seq_len(self) -> int:
        return self.k.shape[3]

    @property
    def nbytes(self) -> int:
        """Bytes reserved, used or not: 2 * L * B * G * max_seq_len * D * bytes a number."""
        return self.k.nbytes + self.v.nbytes

    def require_room(self, batch_size: int, num_tokens: int):
        """Raises before anything is written: CacheFull, or ValueError for another batch size."""
        if batch_size != self.batch_size:
            raise ValueError(f"input of batch {batch_size}, but the cache holds {self.batch_size} rows")
        if self.seq_len + num_tokens > self.max_seq_len:
            raise CacheFull(
                f"cache holds {self.seq_len} of {self.max_seq_len} tokens: no room for {num_tokens} more"
            )

    def require_model(self, config: ModelConfig, dtype: torch.dtype):
        """Raises ValueError unless the cache was made for a model of this shape and dtype."""
        made_for = (self.k.shape[0], self.k.shape[2], self.k.shape[4], self.k.dtype)
        model = (config.num_hidden_layers, config.num_key_value_heads, config.head_dim, dtype)
        if made_for != model:
            raise ValueError(
                f"the cache was made for (layers, key/value heads, head_dim, dtype) {made_for}, "
                f"but the model has {model}"
            )

    def update(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes k, v [B, G, T, D] behind the tokens of this layer; returns views [B, G, S, D] of all.

        The position moves only with `advance`: every layer of one step writes to the same slots.
        """
        start, T = self.seq_len, k.shape[2]
        keys, values = self.k[layer], self.v[layer]  # [B, G, max_seq_len, D]
        # Detached: a cache that remembered how each key was computed would hold every step's graph.
        keys.narrow(2, start, T).copy_(k.detach())
        values.narrow(2, start, T).copy_(v.detach())
        return keys.narrow(2, 0, start + T), values.narrow(2, 0, start + T)

    def advance(self, num_tokens: int):
        """Counts tokens as held, after every layer has written theirs."""
        assert 0 <= self.seq_len <= self.seq_len + num_tokens <= self.max_seq_len
        self.seq_len += num_tokens

    def reset(self):
        """Forgets every token; the memory stays."""
        self.seq_len = 0
