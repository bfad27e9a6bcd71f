"""Whole answer cells of exercise 01 that are no small change of the solution."""

NORM_IN_DOUBLE = """
def rms_norm(x, weight, eps):
    root = (x.double().pow(2).sum(-1, keepdim=True) / x.shape[-1] + eps) ** 0.5
    return (x.double() / root * weight.double()).to(x.dtype)
"""

LIBRARY_NORM = """
def rms_norm(x, weight, eps):
    return F.rms_norm(x.float(), (x.shape[-1],), weight.float(), eps).to(x.dtype)
"""

ROPE_ROTATE_HALF = """
def rope(x, positions, theta):
    half = x.shape[-1] // 2
    angles = torch.outer(positions.float(), theta ** (-2 * torch.arange(half) / x.shape[-1]))
    angles = torch.cat((angles, angles), dim=-1)
    rotated = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * angles.cos().to(x.dtype) + rotated * angles.sin().to(x.dtype)
"""

ROPE_AS_COMPLEX = """
def rope(x, positions, theta):
    half = x.shape[-1] // 2
    pairs = torch.complex(x[..., :half].double(), x[..., half:].double())
    angles = positions.double()[:, None] * theta ** (-torch.arange(half).double() / half)
    turned = pairs * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((turned.real, turned.imag), dim=-1).to(x.dtype)
"""

ATTENTION_BY_LOOPS = """
def attention(q, k, v):
    B, H, T, D = q.shape
    G, S = k.shape[1], k.shape[2]
    out = torch.zeros_like(q)
    for h in range(H):
        g = h // (H // G)
        for t in range(T):
            n = S - T + t + 1
            scores = (k[:, g, :n].float() @ q[:, h, t].float()[:, :, None])[..., 0] / D**0.5
            out[:, h, t] = (scores.softmax(-1)[:, None] @ v[:, g, :n].float())[:, 0].to(q.dtype)
    return out
"""

ATTENTION_BY_EINSUM = """
def attention(q, k, v):
    copies = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(copies, dim=1).float(), v.repeat_interleave(copies, dim=1).float()
    scores = torch.einsum("bhtd,bhsd->bhts", q.float() * q.shape[-1] ** -0.5, k)
    T, S = scores.shape[-2:]
    scores = scores + torch.full((T, S), -torch.inf).triu(S - T + 1)
    return torch.einsum("bhts,bhsd->bhtd", scores.softmax(-1), v).to(q.dtype)
"""

ATTENTION_BY_SDPA = """
def attention(q, k, v):
    T, S = q.shape[2], k.shape[2]
    seen = torch.ones(T, S, dtype=torch.bool).tril(S - T)
    q32, k32, v32 = q.float(), k.float(), v.float()
    return F.scaled_dot_product_attention(q32, k32, v32, attn_mask=seen, enable_gqa=True).to(q.dtype)
"""

ATTENTION_IN_NUMPY = """
import numpy as np


def attention(q, k, v):
    T, S, D = q.shape[2], k.shape[2], q.shape[3]
    copies = q.shape[1] // k.shape[1]
    k, v = (np.repeat(x.double().numpy(), copies, axis=1) for x in (k, v))
    scores = q.double().numpy() @ k.swapaxes(-1, -2) / np.sqrt(D)
    scores = np.where(np.tri(T, S, S - T, dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    out = weights / weights.sum(-1, keepdims=True) @ v
    return torch.from_numpy(out).to(q.dtype)
"""

ALL_QUERIES_THEN_CUT = """
def layer(x, w, heads, kv_heads, last):
    rows, positions = normed(x), torch.arange(x.shape[1])
    q, k, v = (
        (rows @ w[name].T).unflatten(-1, (n, -1)).transpose(1, 2)
        for name, n in (("q", heads), ("k", kv_heads), ("v", kv_heads))
    )
    q, k = turn(q, positions), turn(k, positions)
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    x = x + out.transpose(1, 2).flatten(2) @ w["o"].T
    return (x + F.silu(normed(x) @ w["up"].T) @ w["down"].T)[:, -last:]
"""
