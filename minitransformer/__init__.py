"""A small Llama-style transformer and what serves it, written to be read.

Shape letters, the same in every file:

    B  batch                    T  query tokens (new in this call)
    S  cached tokens + T        H  query heads (num_attention_heads)
    G  key/value heads          D  numbers per head (head_dim)
    L  layers                   V  vocabulary
    E  hidden_size              F  intermediate_size

Files import only from those before them: families, config, cache, layers, model, hub, tokenizer,
checkpoint, sampling, streaming, generate, and then the packages that price, serve and teach.
"""

from minitransformer.cache import CacheFull, KVCache
from minitransformer.checkpoint import load_pretrained, save_pretrained
from minitransformer.config import ModelConfig
from minitransformer.generate import SamplingParams, decode, generate, prefill, stream_text
from minitransformer.model import Transformer

__all__ = [
    "CacheFull",
    "KVCache",
    "ModelConfig",
    "SamplingParams",
    "Transformer",
    "decode",
    "generate",
    "load_pretrained",
    "prefill",
    "save_pretrained",
    "stream_text",
]
