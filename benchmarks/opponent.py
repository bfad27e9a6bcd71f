"""Both sides of the comparison: this package and the transformers library, on the same weights.

A side runs its own `generate` and notes when each token came out: the first ends prefill, the gaps
between the others are decode steps.
"""

import statistics
import tempfile
import time
from dataclasses import dataclass

import torch

from minitransformer import ModelConfig, Transformer, generate, save_pretrained

MODEL = ModelConfig(  # 58M parameters
    vocab_size=32_000,
    hidden_size=512,
    intermediate_size=1536,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=4,
    max_position_embeddings=2048,
)


class Missing(RuntimeError):
    """The transformers library is not installed."""


@dataclass(frozen=True)
class Generation:
    """One call of generate: the new ids [B, n], seconds to the first token, seconds a further one."""

    ids: torch.Tensor
    prefill_s: float
    decode_s: float


def make_pair(config: ModelConfig, dtype: torch.dtype, seed: int = 0):
    """Our model and theirs with the same random weights, through a checkpoint that both can read."""
    try:
        from transformers import AutoModelForCausalLM, logging
    except ImportError:
        raise Missing(
            "the transformers library is not installed: `make bench` installs it with the other test "
            "dependencies, or run `pip install transformers`"
        ) from None
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(seed)
    ours = Transformer(config).to(dtype).eval()
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(ours, folder)
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    return ours, theirs


def run_ours(model: Transformer, input_ids: torch.Tensor, new_tokens: int) -> Generation:
    """Greedy generation with this package."""
    clock = Clock()
    out = generate(model, input_ids, new_tokens, on_token=clock.put)
    return clock.generation(out[:, input_ids.shape[1] :])


def run_theirs(model, input_ids: torch.Tensor, new_tokens: int) -> Generation:
    """Greedy generation with the transformers library. Its streamer gets the prompt first."""
    clock = Clock(skip=1)
    out = model.generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        max_new_tokens=new_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        streamer=clock,
    )
    return clock.generation(out[:, input_ids.shape[1] :])


class Clock:
    """Notes the time of each token; a streamer in the transformers library's sense."""

    def __init__(self, skip: int = 0):
        self.skip, self.times, self.start = skip, [], time.perf_counter()

    def put(self, _):
        if self.skip:
            self.skip -= 1
        else:
            self.times.append(time.perf_counter())

    def end(self): ...

    def generation(self, ids: torch.Tensor) -> Generation:
        gaps = [b - a for a, b in zip(self.times, self.times[1:], strict=False)]
        return Generation(ids, self.times[0] - self.start, statistics.median(gaps))
