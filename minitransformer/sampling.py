"""From logits to the next token. Knows nothing of models, caches or text."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen, and when to stop.

    temperature  0 is greedy; above, logits are divided by it
    top_k        only the k likeliest tokens (0: all)
    top_p        only the likeliest tokens that together reach p, after top_k
    seed         the same seed and prompt give the same text, alone or in any batch; None: fresh each time
    max_tokens   new tokens at most (None: whatever the caller or the window allows)
    stop         strings (need a tokenizer) and token ids that end a sequence
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str | int, ...] = ()

    def __post_init__(self):
        stop = (self.stop,) if isinstance(self.stop, (str, int)) else tuple(self.stop)
        object.__setattr__(self, "stop", stop)
        if not (0 <= self.temperature < float("inf")):
            raise ValueError(f"temperature must be 0 or above, got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (all) or above, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if any(not isinstance(s, (str, int)) or s == "" for s in stop):
            raise ValueError(f"stop takes token ids and strings that are not empty, got {stop}")

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return tuple(s for s in self.stop if isinstance(s, int))

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return tuple(s for s in self.stop if isinstance(s, str))


def uniform(seed: int | None, step: int) -> float:
    """A number in [0, 1) that depends on seed and step alone; without a seed, torch's next one.

    Without state there is nothing to save when a request moves, waits or starts again: its nth token
    meets the same number in any batch and on any machine.
    """
    if seed is None:
        return torch.rand((), dtype=torch.float64).item()
    return random.Random(f"{seed}/{step}").random()


def sample(logits: torch.Tensor, params: Sequence[SamplingParams], steps: Sequence[int]) -> torch.Tensor:
    """Chooses the next token of each row: logits [B, V] -> ids [B].

    Row b follows params[b] and is at its steps[b]-th new token. All rows go through the same few
    tensor operations, whatever their settings, and no row looks at another. Equal logits rank by id.
    """
    greedy = logits.argmax(dim=-1)
    if all(p.temperature == 0 for p in params):
        return greedy
    u = _column([uniform(p.seed, step) for p, step in zip(params, steps, strict=True)], logits)
    probs, order = kept_probs(logits, params)
    cdf = probs.cumsum(dim=-1)
    # The first token whose sum passes u. As u < 1, even the rounded product is below the last sum, so
    # what is found has added to the sum: it was not cut off.
    chosen = torch.searchsorted(cdf, u * cdf[:, -1:], right=True)
    drawn = order.gather(-1, chosen).squeeze(-1)
    is_greedy = torch.tensor([p.temperature == 0 for p in params], device=logits.device)
    return torch.where(is_greedy, greedy, drawn)


def kept_probs(logits: torch.Tensor, params: Sequence[SamplingParams]) -> tuple[torch.Tensor, torch.Tensor]:
    """What temperature, top-k and top-p leave: probabilities [B, V] from the likeliest down, and ids [B, V].

    In float64, 0 for tokens cut off; the rest is not scaled up again to sum to 1.
    """
    V = logits.shape[-1]
    temperature = _column([p.temperature or 1.0 for p in params], logits)
    top_k = _column([p.top_k or V for p in params], logits)
    # top_p = 1 must keep every token, also where rounding lets the running sum pass 1 early.
    top_p = _column([p.top_p if p.top_p < 1 else 2.0 for p in params], logits)

    scores, order = logits.double().sort(dim=-1, descending=True, stable=True)
    scores = (scores - scores[:, :1]) / temperature  # at most 0, so that no temperature overflows
    rank = torch.arange(V, device=logits.device)
    probs = scores.masked_fill(rank >= top_k, -torch.inf).softmax(dim=-1)
    before = probs.cumsum(dim=-1) - probs  # mass of the likelier tokens
    return probs.masked_fill(before >= top_p, 0.0), order


def _column(values: list[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, device=like.device, dtype=torch.float64)[:, None]
