"""Decode attention in float64, one sequence and head at a time, and the slips that people make in it.

What the checks of exercise 08 compare with. Nothing here is shared with `kernels`.
"""

import math

import torch

FAULTS = {
    "no mask": "Keys beyond the sequence's length took part: every load and every score needs the mask.",
    "one short": "The last token of a sequence is missing: tokens 0 to length - 1 take part.",
    "tail dropped": "The last, partly filled block of a split or sequence is missing: round up, then mask.",
    "masked scores are 0": "A masked score must be -inf; with 0 it takes part with weight e^0.",
    "no scale": "The scores were not scaled by 1 / sqrt(D).",
    "heads in turns": "Query head h belongs to key/value head h // (H/G), not to h % G.",
    "first head": "All query heads of a group were given the result of its first.",
    "lengths of sequence 0": "Every sequence has a length of its own.",
}


def decode_attention(q, k, v, context_lens, *, fault: str = "", block: int = 16) -> torch.Tensor:
    """q [B, H, D], k and v [B, G, S, D], context_lens [B] -> [B, H, D] in float64; length 0 gives zeros.

    `fault` names one of FAULTS; `block` is what a dropped tail is a tail of.
    """
    (B, H, D), (G, S) = q.shape, k.shape[1:3]
    out = torch.zeros(B, H, D, dtype=torch.float64)
    for b in range(B):
        length = seen(int(context_lens[0 if fault == "lengths of sequence 0" else b]), S, block, fault)
        for h in range(H):
            g = h % G if fault == "heads in turns" else h // (H // G)
            row = h // (H // G) * (H // G) if fault == "first head" else h
            out[b, h] = one_head(q[b, row], k[b, g], v[b, g], length, block, fault)
    return out


def seen(length: int, S: int, block: int, fault: str) -> int:
    """How many tokens of a sequence take part."""
    if fault == "no mask":
        return S
    if fault == "one short":
        return max(length - 1, 0)
    return length // block * block if fault == "tail dropped" else length


def one_head(q, k, v, length: int, block: int, fault: str) -> torch.Tensor:
    """q [D], k and v [S, D] -> [D]"""
    if length == 0:
        return torch.zeros_like(q, dtype=torch.float64)
    k, v = k[:length].double(), v[:length].double()
    scores = k @ q.double() / (1.0 if fault == "no scale" else math.sqrt(len(q)))
    weights = (scores - scores.max()).exp()
    total = weights.sum()
    if fault == "masked scores are 0":
        total = total + (-length % block) * math.exp(-scores.max())
    return weights @ v / total


def gathered(blocks: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """The cache [N, block, G, D] as each sequence sees it through its table [B, M]: [B, G, M * block, D]."""
    return blocks[table.long()].flatten(1, 2).transpose(1, 2)
