"""What answers to exercise 01 are compared with: everything in float64, one head at a time, with switches
for the mistakes that people make.
"""

import math

import torch


def norm_reference(x, weight, eps: float):
    """x [..., E] over its root mean square, times weight [E]."""
    x = x.double()
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()


def rope_reference(x, positions, theta: float, neighbours: bool = False):
    """x [..., T, D], each pair turned by its position times theta^(-2i/D); pair i is (x[i], x[i + D/2])."""
    x, D = x.double(), x.shape[-1]
    frequencies = theta ** (-torch.arange(0, D, 2).double() / D)
    turn = torch.polar(torch.ones(()).double(), positions.double()[:, None] * frequencies)  # [T, D/2]
    a, b = (x[..., ::2], x[..., 1::2]) if neighbours else x.chunk(2, dim=-1)
    turned = torch.complex(a, b) * turn
    if neighbours:
        return torch.stack((turned.real, turned.imag), dim=-1).flatten(-2)
    return torch.cat((turned.real, turned.imag), dim=-1)


def attention_reference(q, k, v, *, seen=None, tiled=False, scale=None, late_mask=False, score_dtype=None):
    """q [B, H, T, D], k and v [B, G, S, D] -> [B, H, T, D]; query t sees keys up to S - T + t.

    The mistakes: another mask `seen` [T, S], shared heads in the wrong order (`tiled`), another `scale`, a
    mask after softmax, scores rounded to `score_dtype`.
    """
    H, T, D = q.shape[1:]
    G, S = k.shape[1], k.shape[2]
    if seen is None:
        seen = torch.arange(S) <= torch.arange(S - T, S)[:, None]
    heads = []
    for h in range(H):
        g = h % G if tiled else h // (H // G)
        scores = q[:, h].double() @ k[:, g].double().mT * (scale or 1 / math.sqrt(D))
        if score_dtype is not None:
            scores = scores.to(score_dtype).double()
        if late_mask:
            shares = scores.softmax(-1).masked_fill(~seen, 0.0)
        else:
            shares = scores.masked_fill(~seen, -math.inf).softmax(-1)
        heads.append(shares @ v[:, g].double())
    return torch.stack(heads, dim=1)


FAULTS = {
    "mask": "is_causal=True hangs its mask at the top left, which is wrong with fewer queries than keys",
    "positions": "the queries are the last tokens, but they are turned as if they were the first",
    "heads": "the row of key/value heads is repeated (k0 k1 k0 k1), so most queries read another's keys",
}


def layer_reference(x, weights: dict, heads: int, kv_heads: int, last: int, faults=()):
    """The layer of 01.debug over x [B, T, E], its last rows [B, last, E], with the named faults put in."""
    x, w = x.double(), {name: weight.double() for name, weight in weights.items()}
    T = x.shape[1]
    normed = norm_reference(x, torch.ones(x.shape[-1]), 1e-6)
    q = (normed[:, -last:] @ w["q"].T).unflatten(-1, (heads, -1)).transpose(1, 2)
    k, v = ((normed @ w[n].T).unflatten(-1, (kv_heads, -1)).transpose(1, 2) for n in ("k", "v"))
    q_positions = torch.arange(last) if "positions" in faults else torch.arange(T - last, T)
    q, k = rope_reference(q, q_positions, 10_000.0), rope_reference(k, torch.arange(T), 10_000.0)
    seen = torch.ones(last, T).tril().bool() if "mask" in faults else None
    out = attention_reference(q, k, v, seen=seen, tiled="heads" in faults)
    x = x[:, -last:] + out.transpose(1, 2).flatten(2) @ w["o"].T
    inner = norm_reference(x, torch.ones(x.shape[-1]), 1e-6) @ w["up"].T
    return x + torch.nn.functional.silu(inner) @ w["down"].T
