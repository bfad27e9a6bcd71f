"""Shapes of public models, for pricing: no weights, nothing downloaded.

Each is what its public `config.json` says. `MODELS` holds those that this package can also run;
`LATENT_MODELS` those of another kind (a mixture of experts over a latent cache), as the few plain
numbers that napkin formulas need.
"""

from dataclasses import dataclass

from minitransformer.config import ModelConfig


@dataclass(frozen=True)
class LatentModel:
    """A mixture of experts whose cache keeps one latent vector a token and layer (MLA).

    DeepSeek-AI 2024, arXiv 2405.04434, section 2.1: instead of keys and values of every head the cache
    keeps `kv_lora_rank` numbers from which all of them can be made, and `qk_rope_head_dim` for position.
    """

    num_hidden_layers: int
    num_attention_heads: int
    kv_lora_rank: int
    qk_rope_head_dim: int
    num_parameters: int
    active_parameters: int  # that one token meets
    num_experts: int  # routed ones, in a layer
    num_experts_per_tok: int
    source: str


def _llama(hidden_size, intermediate_size, layers, heads, kv_heads, **other) -> ModelConfig:
    shape = {"vocab_size": 128_256, "max_position_embeddings": 8192, "rope_theta": 500_000.0}
    shape |= {"rms_norm_eps": 1e-5}
    return _config(hidden_size, intermediate_size, layers, heads, kv_heads, **(shape | other))


def _qwen(architecture, hidden_size, intermediate_size, layers, heads, kv_heads, **other) -> ModelConfig:
    shape = {"vocab_size": 151_936, "max_position_embeddings": 32_768, "rope_theta": 1_000_000.0}
    shape |= {"architecture": architecture}
    return _config(hidden_size, intermediate_size, layers, heads, kv_heads, **(shape | other))


def _qwen2(*sizes, **other) -> ModelConfig:
    return _qwen("Qwen2ForCausalLM", *sizes, attention_bias=True, **other)


def _qwen3(*sizes, **other) -> ModelConfig:
    other |= {"max_position_embeddings": 40_960, "head_dim": 128, "qk_norm": True}
    return _qwen("Qwen3ForCausalLM", *sizes, **other)


def _config(hidden_size, intermediate_size, layers, heads, kv_heads, **other) -> ModelConfig:
    return ModelConfig(
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        **other,
    )


LLAMA32_ROPE = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

MODELS = {
    "Llama-2-7B": _llama(
        4096, 11_008, 32, 32, 32, vocab_size=32_000, max_position_embeddings=4096, rope_theta=10_000.0
    ),
    "Llama-3-8B": _llama(4096, 14_336, 32, 32, 8),
    "Llama-3-70B": _llama(8192, 28_672, 80, 64, 8),
    "Llama-3.2-1B": _llama(
        2048,
        8192,
        16,
        32,
        8,
        max_position_embeddings=131_072,
        rope_scaling=LLAMA32_ROPE,
        tie_word_embeddings=True,
    ),
    "Mistral-7B-v0.1": _llama(
        4096,
        14_336,
        32,
        32,
        8,
        vocab_size=32_000,
        max_position_embeddings=32_768,
        rope_theta=10_000.0,
        sliding_window=4096,
        architecture="MistralForCausalLM",
    ),
    "Qwen2.5-0.5B": _qwen2(896, 4864, 24, 14, 2, rms_norm_eps=1e-6, tie_word_embeddings=True),
    "Qwen2.5-7B": _qwen2(3584, 18_944, 28, 28, 4, vocab_size=152_064, max_position_embeddings=131_072),
    "Qwen3-0.6B": _qwen3(1024, 3072, 28, 16, 8, tie_word_embeddings=True),
    "Qwen3-8B": _qwen3(4096, 12_288, 36, 32, 8),
    "Qwen3-32B": _qwen3(5120, 25_600, 64, 64, 8),
}

LATENT_MODELS = {
    "DeepSeek-V2": LatentModel(
        num_hidden_layers=60,
        num_attention_heads=128,
        kv_lora_rank=512,
        qk_rope_head_dim=64,
        num_parameters=236_000_000_000,
        active_parameters=21_000_000_000,
        num_experts=160,
        num_experts_per_tok=6,
        source="arXiv 2405.04434, section 3.1.2",
    ),
    "DeepSeek-V3": LatentModel(
        num_hidden_layers=61,
        num_attention_heads=128,
        kv_lora_rank=512,
        qk_rope_head_dim=64,
        num_parameters=671_000_000_000,
        active_parameters=37_000_000_000,
        num_experts=256,
        num_experts_per_tok=8,
        source="arXiv 2412.19437, section 4.2",
    ),
}
