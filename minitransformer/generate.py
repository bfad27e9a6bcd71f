"""Prefill, decode, and the loop that joins them: one batch, one cache.

Prefill reads the whole prompt at once and fills the cache; decode adds one token at a time. They are
two functions because they are two different programs to the hardware (lesson 03).
"""

from collections.abc import Callable, Iterator, Sequence

import torch

from minitransformer.cache import KVCache
from minitransformer.model import Transformer, require_token_ids
from minitransformer.sampling import SamplingParams, sample, uniform
from minitransformer.streaming import TextStream

__all__ = ["SamplingParams", "decode", "generate", "prefill", "sample", "stream_text", "uniform"]


@torch.inference_mode()
def prefill(
    model: Transformer, input_ids: torch.Tensor, cache: KVCache, *, chunk_size: int | None = None
) -> torch.Tensor:
    """Reads input_ids [B, T] into the cache; returns the logits [B, V] of the last position.

    With `chunk_size` the prompt goes through in pieces. The result is the same (each piece sees the
    cached ones); peak memory is smaller, and between pieces other work could run.
    Raises ValueError for ids that the model does not take, CacheFull where they have no room; the
    cache is then as it was.
    """
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    require_token_ids(input_ids, model.config.vocab_size)
    cache.require_room(*input_ids.shape)
    for piece in input_ids.split(chunk_size or input_ids.shape[1], dim=1):
        logits = model(piece, cache, last_only=True)
    return logits[:, -1]


@torch.inference_mode()
def decode(model: Transformer, input_ids: torch.Tensor, cache: KVCache) -> torch.Tensor:
    """One more token a row, input_ids [B, 1], behind what the cache holds; returns logits [B, V].

    Raises like `prefill`.
    """
    if input_ids.dim() != 2 or input_ids.shape[1] != 1:
        raise ValueError(f"decode takes one token a row, [B, 1], got {tuple(input_ids.shape)}")
    return model(input_ids, cache)[:, -1]


def generate(
    model: Transformer,
    input_ids: torch.Tensor,
    max_new_tokens: int | None = None,
    *,
    sampling: SamplingParams | Sequence[SamplingParams] = SamplingParams(),
    stop_ids: Sequence[int] = (),
    on_token: Callable[[torch.Tensor], None] | None = None,
    tokenizer=None,
    chunk_size: int | None = None,
) -> torch.Tensor:
    """Continues input_ids [B, T] by up to `max_new_tokens`; returns [B, T + n].

    A row ends at a stop id (kept), at the token that completes a stop string, or at its own
    `max_tokens`; after that it repeats its last token until every row has ended. `on_token` gets each
    step's ids [B] as they come, the first one right after prefill.
    `sampling` is one for all rows or one for each. Raises ValueError where the request can't fit the
    model's window or stop strings come without a tokenizer.
    """
    require_token_ids(input_ids, model.config.vocab_size)
    B, T = input_ids.shape
    params = [sampling] * B if isinstance(sampling, SamplingParams) else list(sampling)
    if len(params) != B:
        raise ValueError(f"{len(params)} sampling parameters for a batch of {B}")
    budgets = [_budget(model, T, max_new_tokens, p) for p in params]
    endings = [_Ending(p, stop_ids, n, tokenizer) for p, n in zip(params, budgets, strict=True)]
    new: list[torch.Tensor] = []
    ended = torch.zeros(B, dtype=torch.bool)
    for ids in _steps(model, input_ids, params, max(budgets), chunk_size):
        ids = torch.where(ended.to(ids.device), new[-1], ids) if new else ids
        new.append(ids)
        if on_token is not None:
            on_token(ids)
        ended |= torch.tensor([e.reached(i) for e, i in zip(endings, ids.tolist(), strict=True)])
        if ended.all():
            break
    return torch.cat((input_ids, torch.stack(new, dim=1)), dim=1)


def stream_text(
    model: Transformer,
    tokenizer,
    prompt: str | Sequence[int],
    sampling: SamplingParams = SamplingParams(),
    *,
    on_token: Callable[[int], None] | None = None,
    chunk_size: int | None = None,
) -> Iterator[str]:
    """Continues one prompt and yields its text piece by piece, each as soon as nothing can change it.

    The text ends before a stop string, before a stop id of the sampling parameters or the tokenizer, or
    with the last token that `max_tokens` or the model's window allows. The pieces joined are the whole
    answer, without the prompt. A piece may come from several tokens; `on_token` gets each token's id at
    once, the one that stops included. Raises ValueError at the call, not at the first piece.
    """
    ids = tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
    input_ids = torch.tensor([ids], dtype=torch.long, device=model.device)
    require_token_ids(input_ids, model.config.vocab_size)
    budget = _budget(model, len(ids), None, sampling)
    stop_ids = {*tokenizer.stop_ids, *sampling.stop_ids}

    def pieces():
        text = TextStream(tokenizer, sampling.stop_strings)
        for (token,) in map(torch.Tensor.tolist, _steps(model, input_ids, [sampling], budget, chunk_size)):
            if on_token is not None:
                on_token(token)
            if token in stop_ids:
                break
            yield text.push(token)
            if text.stopped:
                return
        yield text.finish()

    return filter(None, pieces())


def _steps(model, input_ids, params, max_new_tokens, chunk_size) -> Iterator[torch.Tensor]:
    """Ids [B] of one new token after another. A step runs when it is asked for, and not before."""
    B, T = input_ids.shape
    cache = KVCache(model.config, B, T + max_new_tokens, model.dtype, model.device)
    ids = sample(prefill(model, input_ids, cache, chunk_size=chunk_size), params, [0] * B)
    yield ids
    for step in range(1, max_new_tokens):
        ids = sample(decode(model, ids[:, None], cache), params, [step] * B)
        yield ids


def _budget(model: Transformer, T: int, max_new_tokens: int | None, params: SamplingParams) -> int:
    """New tokens that a prompt of T may have."""
    window = model.config.max_position_embeddings
    limits = [n for n in (max_new_tokens, params.max_tokens) if n is not None]
    wanted = min(limits, default=max(window - T, 1))
    if wanted < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {wanted}")
    if T + wanted > window:
        raise ValueError(f"{T} tokens of prompt and {wanted} new ones pass the model's window of {window}")
    return wanted


class _Ending:
    """Tells when one row has ended."""

    def __init__(self, params: SamplingParams, stop_ids: Sequence[int], budget: int, tokenizer):
        if params.stop_strings and tokenizer is None:
            raise ValueError(f"stop strings {params.stop_strings} need a tokenizer: pass tokenizer=...")
        self.ids, self.left = {*stop_ids, *params.stop_ids}, budget
        self.text = TextStream(tokenizer, params.stop_strings) if params.stop_strings else None

    def reached(self, token: int) -> bool:
        if self.left > 0:
            self.left = 0 if token in self.ids or self._completes_stop_string(token) else self.left - 1
        return self.left == 0

    def _completes_stop_string(self, token: int) -> bool:
        if self.text is not None:
            self.text.push(token)
        return self.text is not None and self.text.stopped
