"""The check of exercise 02's task 02.generate: greedy generation with a cache."""

import math

import torch

from minitransformer.course.checking import Built, CheckFailed, expect, expect_close, expect_equal, keep, task
from minitransformer.course.checks.kv_reference import uncached


@task("02.generate", "greedy generation with a cache")
def generate(answer, rng):
    for B, T, new, spare, chunk_size in [
        (1, 4, 4, 9, None),  # slots to spare first: a token too many is told apart from a full cache
        (2, 5, 6, 0, None),
        (1, 1, 4, 9, None),
        (3, 11, 3, 0, 4),
        (1, 8, 1, 3, 3),
        (2, 6, 5, 20, 1),
    ]:
        spec, prompt = Built("tiny_model", seed=rng.randint(0, 2**30)), rng.randint(0, 61, B, T)
        cache = keep(answer, Built("watched_cache", batch_size=B, max_seq_len=T + new - 1 + spare))
        given = f"prompt [{B}, {T}], max_new_tokens={new}, {spare} spare slots, chunk_size={chunk_size}"
        came, model = answer(spec, prompt, new, cache, chunk_size), spec.build()
        compare_tokens(came, model, prompt, new, given, chunk_size)
        check_passes(list(cache.steps), given, T, new, chunk_size)
        check_contents(cache, model, came, given)


def compare_tokens(came, model, prompt, new: int, given: str, chunk_size: int | None):
    wanted = uncached(model, prompt, new)
    whole_chunks = prompt.shape[1] // (chunk_size or 1) * (chunk_size or 1)
    likely = [
        (wanted[:, prompt.shape[1] :], "Return the prompt too: [B, T + max_new_tokens]."),
        (wanted[:, :-1], "One token is missing."),
        (lambda: uncached(model, prompt, new, first=True), "Take the logits of the last position."),
    ]
    if 0 < whole_chunks < prompt.shape[1]:
        dropped = uncached(model, prompt[:, :whole_chunks], new)[:, whole_chunks:]
        why = "The last piece of the prompt, shorter than the others, was left out."
        likely.append((torch.cat((prompt, dropped), dim=1), why))
    expect(isinstance(came, torch.Tensor), f"For {given}, a tensor of token ids should come back.")
    expect_equal(came, wanted, given, likely, name="the tokens")


def check_passes(steps: list[int], given: str, T: int, new: int, chunk_size: int | None):
    """The tokens of each pass through the model: no token twice, none too many, pieces of the right size."""
    expect(bool(steps), f"For {given}, the tokens are right, but nothing went through the cache.")
    needed, longest = T + new - 1, chunk_size or T
    if sum(steps) != needed:
        into = f"For {given}, {sum(steps)} tokens a row went into the cache; {needed} should."
        raise CheckFailed(f"{into} {wrong_amount(sum(steps), needed, T)}")
    size = f"For {given}, {max(steps)} tokens went through the model at once, and at most {longest} may."
    expect(max(steps) <= longest, size)
    calls = math.ceil(T / longest) + new - 1
    often = f"For {given}, the model was called {len(steps)} times where {calls} calls are enough."
    expect(len(steps) <= calls + 1, often)  # one more: the prompt's last token in a step of its own


def wrong_amount(came: int, needed: int, T: int) -> str:
    """The likely reason why a wrong number of tokens went through the model."""
    if came < needed:
        return "Some tokens that later ones must see were never given to the model with this cache."
    if came == needed + 1:
        return "Nothing follows the last new token, so it need not be fed."
    if came == needed + T:
        return "The prompt went through twice."
    return "Tokens went through again that the cache holds already: a step takes the newest token alone."


def check_contents(cache, model, ids, given: str):
    """What lies in the cache must be what one pass over the same tokens leaves there."""
    B, S = ids.shape[0], ids.shape[1] - 1
    wanted = Built("watched_cache", batch_size=B, max_seq_len=S).build()
    with torch.inference_mode():
        model(ids[:, :-1], wanted)
    for name, came, right in (("keys", cache.k, wanted.k), ("values", cache.v, wanted.v)):
        expect_close(came[:, :, :, :S], right, given, tolerance=1e-4, name=f"the cached {name}")
