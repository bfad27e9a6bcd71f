"""Checks of exercise 07's kernels: 07.kernel, of which the loop is to be written, and 07.debug."""

import math
from functools import partial

import torch

from minitransformer.course.checking import expect, task
from minitransformer.course.checks.triton_checks import (
    Output,
    TritonAnswer,
    expect_float32_sums,
    expect_no_spills,
    expect_tensor_cores,
)

TF32 = 1e-2  # relative error of float32 products on a GPU's tensor cores


def attended(q, k, v, fault: str = "", block_t: int = 16, block_s: int = 16) -> torch.Tensor:
    """Causal attention of q [H, T, D] over k, v [G, S, D] in float64; `fault` names a mistake to make."""
    (H, T, D), (G, S) = q.shape, k.shape[:2]
    heads = [h % G if fault == "heads" else h // (H // G) for h in range(H)]
    scores = q.double() @ k.double()[heads].mT
    if fault != "scale":
        scores = scores * D**-0.5
    t, s = torch.arange(T)[:, None], torch.arange(S)
    hidden = s > (t if fault == "top left" else S - T + t)
    if fault == "blind":
        hidden = hidden & False
    if fault == "tail":
        hidden = hidden | (s >= S // block_s * block_s)
    if fault == "short":
        hidden = hidden | (s // block_s * block_s >= (t // block_t + 1) * block_t)
    if fault == "diagonal":
        hidden = s >= S - T + t
    weights = scores.masked_fill(hidden, -math.inf).softmax(-1)
    if fault == "no shrink":
        weights = forgetful_weights(scores.masked_fill(hidden, -math.inf), block_s)
    return weights @ v.double()[heads]


def forgetful_weights(scores, block_s: int):
    """Weights over sums that shrink, of terms that do not: acc is not rescaled when the maximum rises."""
    largest = [
        scores[..., : end + block_s].amax(-1, keepdim=True).expand(*scores.shape[:-1], block_s)
        for end in range(0, scores.shape[-1], block_s)
    ]
    under = torch.cat(largest, -1)[..., : scores.shape[-1]]
    return (scores - under).exp() / (scores - scores.amax(-1, keepdim=True)).exp().sum(-1, keepdim=True)


FAULTS = {
    "top left": "The mask is aligned top left: query t of the newest T stands at position S - T + t.",
    "short": "The loop stops at key first + BLOCK_T: the newest tokens stand behind S - T others.",
    "blind": "Nothing is masked: queries see keys that come after them.",
    "diagonal": "A query does not see its own key.",
    "scale": "The scores were not multiplied by the scale.",
    "no shrink": "When the maximum rises, acc has to shrink like l: it was summed under the older one.",
    "tail": "Keys of the last block, which is not full, are left out.",
    "heads": "Query head h belongs to key/value head h // GROUP, not h % G.",
}


def launch_args(q, k, v, block_t: int, block_s: int) -> dict:
    """The arguments of both kernels, in the order of their parameters."""
    (H, T, D), (G, S) = q.shape, k.shape[:2]
    args = {"q": q, "k": k, "v": v, "out": Output((H, T, D)), "T": T, "S": S, "scale": D**-0.5}
    return args | {"GROUP": H // G, "D": D, "BLOCK_T": block_t, "BLOCK_S": block_s}


def expect_attention(kernel: TritonAnswer, rng, cases):
    """Each case: H, G, T, S, D, BLOCK_T, BLOCK_S, and by what scores rise from the first key to the last."""
    for H, G, T, S, D, block_t, block_s, rise in cases:
        q, k, v = rng.randn(H, T, D), rng.randn(G, S, D), rng.randn(G, S, D)
        q[..., 0] = math.sqrt(D)  # so that the first number of a key is added to its scores
        k[..., 0] = (4 * torch.linspace(0, rise, S)).round() / 4  # which TF32 holds exactly
        likely = [(partial(attended, q, k, v, fault, block_t, block_s), why) for fault, why in FAULTS.items()]
        given = f"H={H}, G={G}, T={T}, S={S}, D={D}, tiles of {block_t} x {block_s}"
        kernel.expect(
            (-(-T // block_t), H),
            launch_args(q, k, v, block_t, block_s),
            {"out": attended(q, k, v)},
            given + (f", scores that rise by {rise}" if rise else ""),
            {"out": likely},
            tolerance=2e-5,
            gpu_tolerance=TF32,
        )


def expect_compiled(kernel: TritonAnswer):
    """Compiles for an H100 at a size that is used: tensor cores, no spills, sums in float32."""
    # Sums over products in place of tl.dot keep the compiler busy for minutes.
    expect(
        "tl.dot" in kernel.source.text, "The kernel is right, but uses no tensor cores: multiply with tl.dot."
    )
    q, k = torch.empty(32, 4096, 64, device="meta"), torch.empty(8, 4096, 64, device="meta")
    narrow = dict.fromkeys(("q", "k", "v", "out"), torch.bfloat16)
    compiled = kernel.compiles(launch_args(q, k, k, 64, 64), dtypes=narrow, num_warps=4, num_stages=2)
    given = "bfloat16, D=64, tiles of 64 x 64 on an H100"
    expect_tensor_cores(compiled, given)
    expect_float32_sums(compiled, given)
    expect_no_spills(compiled, given)


# H, G, T, S, D, BLOCK_T, BLOCK_S, rise
CASES = [
    (1, 1, 16, 16, 16, 16, 16, 0),
    (2, 1, 21, 21, 16, 16, 16, 0),
    (4, 2, 5, 40, 16, 16, 16, 0),
    (1, 1, 1, 37, 32, 16, 16, 20),
    (2, 2, 19, 70, 16, 16, 32, 40),
    (1, 1, 3, 3, 16, 16, 16, 0),
    (1, 1, 9, 33, 16, 32, 16, 0),
]


@task("07.kernel", "the loop of FlashAttention")
def flash_kernel(answer, rng):
    kernel = TritonAnswer(answer)
    expect_attention(kernel, rng, CASES)
    expect_compiled(kernel)
    return kernel.note


@task("07.debug", "right only for T = S")
def mended_kernel(answer, rng):
    kernel = TritonAnswer(answer)
    expect_attention(kernel, rng, CASES)
    expect_far_below_zero(kernel, rng)
    expect_compiled(kernel)
    return kernel.note


def expect_far_below_zero(kernel: TritonAnswer, rng):
    """Scores of about -200: a maximum that began at 0 would leave weights of e^-200, in float32 a 0."""
    q, k, v = rng.randn(2, 20, 16), rng.randn(1, 36, 16), rng.randn(1, 36, 16)
    q[..., 0], k[..., 0] = 4.0, -200.0
    given = "H=2, G=1, T=20, S=36, D=16, scores of about -200 (does m begin below them?)"
    nothing = torch.zeros(2, 20, 16)
    cause = "m began above all scores, so all weights are 0: begin below any score."
    kernel.expect(
        (2, 2),
        launch_args(q, k, v, 16, 16),
        {"out": attended(q, k, v)},
        given,
        {"out": [(nothing, cause)]},
        tolerance=1e-3,
        gpu_tolerance=TF32,
    )
