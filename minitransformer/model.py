"""The transformer: an embedding, a stack of layers, a head. Nothing else.

Submodules carry the names of public checkpoints, so that loading one is a matter of names. The model
holds no sequence: positions come from the cache, and `cache=None` is the oracle that every faster path
is tested against.
"""

import torch
from torch import nn

from minitransformer.cache import KVCache
from minitransformer.config import ModelConfig
from minitransformer.layers import Attention, Linear, Ops, RMSNorm, RotaryEmbedding, SwiGLU, choose_ops
from minitransformer.layers.linear import linear
from minitransformer.paged_cache import PagedKVCache
from minitransformer.ragged import RaggedBatch


class TransformerLayer(nn.Module):
    """Attention between tokens, then a feed-forward layer within each, both added to the stream."""

    def __init__(self, config: ModelConfig, layer: int, ops: Ops):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, ops.norm)
        self.self_attn = Attention(config, layer, ops.attend, ops.norm, ops.rope, ops.attend_rows)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, ops.norm)
        self.mlp = SwiGLU(config, ops.swiglu)

    def forward(self, x, cos, sin, cache=None):  # [B, T, E] -> [B, T, E]
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, cache)
        return x + self.mlp(self.post_attention_layernorm(x))

    def forward_ragged(self, x, cos, sin, cache, batch):  # [1, n, E] -> [1, n, E]
        x = x + self.self_attn.forward_ragged(self.input_layernorm(x), cos, sin, cache, batch)
        return x + self.mlp(self.post_attention_layernorm(x))


class Transformer(nn.Module):
    """A Llama-style decoder: token ids in, logits out.

    `attention` names the implementation: "reference" (every step written out), "sdpa" (PyTorch's fused
    operator) or "triton" (the kernels of this package, for norms, rotary embedding and SwiGLU too; matrix
    products stay PyTorch's). Weights are random until a checkpoint is loaded.
    """

    def __init__(self, config: ModelConfig, *, attention: str = "sdpa"):
        super().__init__()
        ops = choose_ops(attention, config)
        self.config, self.ops = config, ops
        # An nn.Embedding that draws no numbers yet: _init_weights does, unless there is no memory (meta).
        empty = torch.empty(config.vocab_size, config.hidden_size)
        self.embed_tokens = nn.Embedding.from_pretrained(empty, freeze=False)
        self.layers = nn.ModuleList(TransformerLayer(config, i, ops) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, ops.norm)
        self.rotary = RotaryEmbedding(config)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        self.apply(_init_weights)

    @property
    def device(self) -> torch.device:
        return self.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embed_tokens.weight.dtype

    def forward(
        self, input_ids: torch.Tensor, cache: KVCache | None = None, last_only: bool = False
    ) -> torch.Tensor:
        """input_ids [B, T] -> logits [B, T, V], or [B, 1, V] of the last position with `last_only`.

        With a cache the tokens continue what it holds, and it holds them afterwards.
        Raises ValueError for ids that are no [B, T] of vocabulary indices or pass the model's window,
        CacheFull where the cache has no room; the cache is then as it was.
        """
        start = self._check(input_ids, cache)
        T = input_ids.shape[1]
        positions = torch.arange(start, start + T, device=self.device)
        cos, sin = (t.to(self.dtype) for t in self.rotary(positions))  # [T, D]
        x = self.embed_tokens(input_ids)  # [B, T, E]
        for layer in self.layers:
            x = layer(x, cos, sin, cache)
        if cache is not None:
            cache.advance(T)
        return self.logits(x[:, -1:] if last_only else x)

    def forward_ragged(self, batch: RaggedBatch, cache: PagedKVCache, connector=None) -> torch.Tensor:
        """The new tokens of many sequences at once -> logits [R, V] of each row's last token.

        The cache holds all of them afterwards. A `connector` (minitransformer/disaggregation/connector.py)
        is told before each layer that its cache will be read, and after it that it is written. Raises
        ValueError for a cache of another shape; ids and positions are the caller's to check, once for a
        sequence and not at every step.
        """
        cache.require_model(self.config, self.dtype)
        cos, sin = (t.to(self.dtype) for t in self.rotary(batch.positions))  # [n, D]
        x = self.embed_tokens(batch.token_ids)[None]  # [1, n, E]
        for i, layer in enumerate(self.layers):
            if connector is not None:
                connector.wait_for_layer_load(i)
            x = layer.forward_ragged(x, cos, sin, cache, batch)
            if connector is not None:
                connector.save_kv_layer(i, cache)
        return self.logits(x[:, batch.last_tokens])[0]

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """The stream after the last layer [B, T, E] -> logits [B, T, V]."""
        head = self.embed_tokens if self.config.tie_word_embeddings else self.lm_head
        return linear(self.norm(x), head.weight)

    def _check(self, input_ids: torch.Tensor, cache: KVCache | None) -> int:
        """The position of the first token, once everything fits."""
        require_token_ids(input_ids, self.config.vocab_size)
        start = 0 if cache is None else cache.seq_len
        end, window = start + input_ids.shape[1], self.config.max_position_embeddings
        if cache is not None:
            cache.require_model(self.config, self.dtype)
            cache.require_room(*input_ids.shape)
        if end > window:
            raise ValueError(f"position {end - 1} is beyond the model's window of {window} tokens")
        return start


def require_token_ids(input_ids: torch.Tensor, vocab_size: int):
    """Raises ValueError unless input_ids is [B, T >= 1] of whole numbers within the vocabulary."""
    if input_ids.dim() != 2 or input_ids.numel() < 1 or input_ids.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"input_ids must be whole numbers (int64) of shape [batch, tokens >= 1], got "
            f"{input_ids.dtype} of shape {tuple(input_ids.shape)}"
        )
    if input_ids.device.type != "cpu":  # to look would wait for the device; there the embedding asserts it
        return
    least, most = (int(x) for x in input_ids.aminmax())
    if not 0 <= least <= most < vocab_size:
        raise ValueError(f"token ids run from {least} to {most}, but the vocabulary has {vocab_size}")


def _init_weights(module: nn.Module):
    if not isinstance(module, (nn.Linear, nn.Embedding)) or module.weight.is_meta:
        return  # to draw numbers for a tensor without memory, PyTorch would import its compiler first
    nn.init.normal_(module.weight, std=0.02)
    if getattr(module, "bias", None) is not None:
        nn.init.zeros_(module.bias)
