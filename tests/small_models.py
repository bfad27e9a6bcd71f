"""Small models with random weights, for tests that ask how a model behaves and not what it knows."""

import torch

from minitransformer import ModelConfig, Transformer

torch.set_num_threads(1)  # for models this small a second thread costs more than it brings

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def small_config(**changes) -> ModelConfig:
    return ModelConfig(**SHAPE | changes)


def small_model(seed: int = 0, attention: str = "sdpa", **changes) -> Transformer:
    torch.manual_seed(seed)
    return randomize(Transformer(small_config(**changes), attention=attention)).eval()


@torch.no_grad()
def randomize(model: torch.nn.Module) -> torch.nn.Module:
    """Weights large enough that every one of them shows in the logits, norms and biases included."""
    for name, weight in model.named_parameters():
        if "norm" in name:
            weight.copy_(1 + 0.3 * torch.randn_like(weight))
        elif name.endswith("bias"):
            weight.copy_(0.5 * torch.randn_like(weight))
        else:
            weight.copy_(torch.randn_like(weight) * weight.shape[-1] ** -0.5)
    return model


def random_ids(batch: int, tokens: int, seed: int = 1, vocab_size: int = SHAPE["vocab_size"]) -> torch.Tensor:
    return torch.randint(0, vocab_size, (batch, tokens), generator=torch.Generator().manual_seed(seed))
