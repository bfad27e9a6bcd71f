"""Checks of exercise 01, attention in context: the tasks in which code is written or mended.

The two about numbers, 01.numbers and 01.layer, are in attention_numbers.py; what answers are compared with
is in attention_reference.py.
"""

import itertools
import math

import torch

from minitransformer.course.checking import Built, expect_close, task
from minitransformer.course.checks import attention_numbers  # noqa: F401, registers its tasks
from minitransformer.course.checks.attention_reference import (
    FAULTS,
    attention_reference,
    layer_reference,
    norm_reference,
    rope_reference,
)

# --- 01.rms_norm ----------------------------------------------------------------------------------------


@task("01.rms_norm", "RMSNorm")
def rms_norm(answer, rng):
    for shape, dtype, size in [
        ((2, 3, 16), torch.float32, 1.0),
        ((1, 1, 8), torch.float32, 1e-3),  # small enough for eps to count
        ((5, 64), torch.float32, 100.0),
        ((7,), torch.float32, 1.0),
        ((2, 4, 32), torch.bfloat16, 3.0),
        ((3, 48), torch.float16, 400.0),  # squares beyond float16
        ((3, 48), torch.float16, 2e-4),  # squares below float16
    ]:
        eps = 10 ** rng.uniform(-7, -5)
        x, weight = (size * (rng.randn(*shape) + 0.5)).to(dtype), (1 + 0.3 * rng.randn(shape[-1])).to(dtype)
        given = f"x of shape {list(shape)} and {_plain(dtype)}, numbers around {size:g}, eps {eps:.1g}"
        came = answer(x, weight, eps)
        expect_close(came, norm_reference(x, weight, eps), given, norm_mistakes(x, weight, eps), dtype=dtype)
    x = torch.zeros(2, 8)
    expect_close(answer(x, torch.ones(8), 1e-6), x.double(), "x of zeros", name="the result")


def norm_mistakes(x, weight, eps):
    x64, w64 = x.double(), weight.double()
    mean_square = x64.square().mean(-1, keepdim=True)
    careless = (x.square().mean(-1, keepdim=True) + eps).double()  # squares in the dtype of x
    return [
        (lambda: x64 / x64.norm(dim=-1, keepdim=True) * w64, "That is the norm, not the root mean square."),
        (lambda: norm_reference(x64 - x64.mean(-1, keepdim=True), w64, eps), "No mean is subtracted here."),
        (lambda: norm_reference(x64, 1 + w64, eps), "The weight multiplies; it is not added to 1."),
        (lambda: norm_reference(x64, torch.ones_like(w64), eps), "The weight is missing."),
        (lambda: x64 / (mean_square.sqrt() + eps) * w64, "eps belongs under the root."),
        (lambda: x64 / mean_square.sqrt() * w64, "eps is missing."),
        (lambda: x64 * (x64.square().mean() + eps).rsqrt() * w64, "Each row has a mean of its own: dim=-1."),
        (
            lambda: x64 * careless.rsqrt() * w64,
            f"Take the squares in float32: {_plain(x.dtype)} cannot hold them.",
        ),
    ]


# --- 01.rope --------------------------------------------------------------------------------------------


@task("01.rope", "rotary positions")
def rope(answer, rng):
    thetas = itertools.cycle(rng.choice(list(itertools.permutations([100.0, 10_000.0, 500_000.0]))))
    for shape, dtype, first in [
        ((1, 2, 5, 8), torch.float32, 0),
        ((2, 1, 1, 16), torch.float32, 37),  # one token, not the first
        ((1, 3, 4, 6), torch.float32, 1000),
        ((2, 2, 7, 2), torch.float32, 3),
        ((1, 2, 3, 32), torch.bfloat16, 5000),  # angles that bfloat16 cannot hold
        ((1, 2, 3, 32), torch.float16, 3000),
    ]:
        theta = next(thetas)
        x = rng.randn(*shape).to(dtype)
        positions = first + torch.sort(rng.permutation(4 * shape[2])[: shape[2]]).values
        given = (
            f"x of shape {list(shape)} and {_plain(dtype)}, positions {positions.tolist()}, theta {theta:g}"
        )
        wanted, likely = rope_reference(x, positions, theta), rope_mistakes(x, positions, theta)
        # Angles in float32: a position of a few thousand leaves them exact to about 1e-4 radians.
        tolerance = {torch.float32: 2e-4}.get(dtype)
        expect_close(answer(x, positions, theta), wanted, given, likely, tolerance=tolerance, dtype=dtype)


def rope_mistakes(x, positions, theta):
    def turned(positions=positions, theta=theta, **options):
        return lambda: rope_reference(x, positions, theta, **options)

    from_zero, exponent = (
        "The positions are given; do not count from 0.",
        "The exponent is 2i/D, for pair i of D/2.",
    )
    return [
        (turned(torch.arange(len(positions))), from_zero),
        (turned(positions - positions[0]), from_zero),
        (turned(-positions), "You turn the other way round: first * cos - second * sin."),
        (turned(neighbours=True), "You paired neighbours (x[0], x[1]); here pair i is (x[i], x[i + D/2])."),
        (turned(theta=theta**0.5), exponent),
        (turned(theta=theta**2), exponent),
        (turned(theta=1 / theta), "Later pairs turn more slowly: theta to the power of -2i/D."),
        (turned(positions.to(x.dtype)), f"Angles in float32: {_plain(x.dtype)} cannot hold these positions."),
    ]


# --- 01.attention ---------------------------------------------------------------------------------------


@task("01.attention", "causal grouped-query attention")
def attention(answer, rng):
    for (B, H, G, T, S, D), dtype, size in [
        ((2, 4, 2, 5, 5, 8), torch.float32, 1.0),
        ((1, 6, 2, 1, 9, 16), torch.float32, 1.0),  # one query, many keys
        ((3, 4, 1, 3, 10, 4), torch.float32, 1.0),  # one key/value head, a later chunk
        ((1, 3, 3, 7, 7, 6), torch.float32, 1.0),
        ((2, 8, 2, 1, 1, 32), torch.float32, 1.0),
        ((1, 4, 2, 6, 13, 64), torch.float16, 64.0),  # products beyond float16
        ((2, 8, 2, 6, 6, 64), torch.float16, 64.0),  # queries that see one key, whose score is far below 0
        ((1, 4, 2, 6, 13, 64), torch.float16, 12.0),  # keys alike: scores that differ in the last digits
    ]:
        q, k, v = (size * rng.randn(B, H, T, D)).to(dtype), rng.randn(B, G, S, D), rng.randn(B, G, S, D)
        if size == 12:
            k = rng.randn(B, G, 1, D) + 0.02 * k
        k, v = (size * k).to(dtype), v.to(dtype)
        given = f"B={B}, H={H}, G={G}, T={T}, S={S}, D={D}, {_plain(dtype)}" + ", large scores" * (size > 1)
        likely = attention_mistakes(q, k, v)
        expect_close(answer(q, k, v), attention_reference(q, k, v), given, likely, dtype=dtype)
    without_the_library(answer, rng)


def without_the_library(answer, rng):
    """Inputs that raise where they meet the library's attention; on all else they are ordinary tensors."""
    given = [Built("on_paper", seed=rng.randint(0, 2**30), shape=[2, heads, 3, 8]) for heads in (4, 2, 2)]
    q, k, v = (spec.build().as_subclass(torch.Tensor) for spec in given)
    expect_close(answer(*given), attention_reference(q, k, v), "B=2, H=4, G=2, T=3, S=3, D=8")


def attention_mistakes(q, k, v):
    D, T, S = q.shape[-1], q.shape[2], k.shape[2]

    def given(**options):
        return lambda: attention_reference(q, k, v, **options)

    return [
        (given(seen=torch.ones(T, S).tril().bool()),
         "Your mask hangs at the top left. Query t is token S - T + t: the last query sees every key."),
        (given(seen=torch.ones(T, S).bool()), "There is no mask: tokens see the future."),
        (given(tiled=True),
         "Query heads h*H/G to (h+1)*H/G - 1 share head h: repeat each head, not the row of heads."),
        (given(scale=1.0), "The scores lack the factor 1/sqrt(D)."),
        (given(scale=1 / D), "Divide the scores by sqrt(D), not by D."),
        (given(late_mask=True), "The mask must come before softmax: after it, the shares do not sum to 1."),
        (given(score_dtype=q.dtype), f"Compute the scores in float32: {_plain(q.dtype)} cannot hold them."),
    ]  # fmt: skip


# --- 01.debug -------------------------------------------------------------------------------------------


@task("01.debug", "a layer that passes the first test")
def debug(answer, rng):
    for (B, T, H, G, D), last in [
        ((1, 6, 2, 2, 8), 6),
        ((2, 5, 4, 2, 6), 5),
        ((1, 7, 2, 2, 8), 1),
        ((2, 9, 3, 3, 4), 4),
        ((1, 8, 6, 2, 8), 3),
        ((2, 4, 4, 1, 4), 1),
    ]:
        E = H * D
        x = rng.randn(B, T, E)
        weights = draw_layer(rng, E, H * D, G * D)
        given = f"x of shape [{B}, {T}, {E}], {H} heads, {G} key/value heads, last={last}"
        compare_layer(answer, (x, weights, H, G, last), given)


def draw_layer(rng, E: int, q_size: int, kv_size: int) -> dict:
    shapes = {"q": (q_size, E), "k": (kv_size, E), "v": (kv_size, E), "o": (E, q_size)}
    shapes |= {"up": (2 * E, E), "down": (E, 2 * E)}
    return {name: rng.randn(*shape) / math.sqrt(shape[1]) for name, shape in shapes.items()}


def compare_layer(answer, inputs: tuple, given: str):
    """When the output is that of a layer with some of the faults, the paragraph names them."""
    some_faults = [some for n in (1, 2, 3) for some in itertools.combinations(FAULTS, n)]
    likely = [(lambda some=some: layer_reference(*inputs, some), _in_words(some)) for some in some_faults]
    expect_close(answer(*inputs), layer_reference(*inputs), given, likely, tolerance=1e-4)


def _in_words(some: tuple[str, ...]) -> str:
    return "It still has this fault: " + "; and this one: ".join(FAULTS[name] for name in some)


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
