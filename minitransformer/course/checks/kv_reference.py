"""What exercise 02's answers are compared with, written for clarity in float64: right ones, and wrong ones
on purpose, by which a check recognises a mistake.
"""

import math

import torch


@torch.inference_mode()
def uncached(model, ids, new: int, first: bool = False):
    """Greedy generation by reading the whole text again for every token. ids [B, T] -> [B, T + new]

    `first` takes the first new token from the prompt's first position (wrong).
    """
    for step in range(new):
        logits = model(ids)[:, 0 if first and step == 0 else -1]
        ids = torch.cat((ids, logits.argmax(-1, keepdim=True)), dim=1)
    return ids


def written(cache, new, slots):
    """cache [B, G, S, D] with row b's new [G, D] at slots[b]."""
    cache = cache.clone()
    for b, slot in enumerate(slots.tolist()):
        cache[b, :, slot] = new[b]
    return cache


def ragged_attention(q, k, v, counts, *, scaled: bool = True, tiled: bool = False):
    """Query b sees the first counts[b] slots of its row: one row, one head at a time. -> [B, H, D]

    q [B, H, D]; k, v [B, G, S, D]. `tiled` gives query head h the key head h % G (wrong), `scaled=False`
    leaves out 1/sqrt(D) (wrong).
    """
    B, H, D = q.shape
    G = k.shape[1]
    out = torch.zeros(B, H, D, dtype=torch.float64)
    for b in range(B):
        for h in range(H):
            g = h % G if tiled else h // (H // G)
            n = int(counts[b])
            scores = k[b, g, :n].double() @ q[b, h].double() / (math.sqrt(D) if scaled else 1)
            out[b, h] = scores.softmax(0) @ v[b, g, :n].double()
    return out


def rotate(x, positions):
    """RoPE: pair i of x [T, E] is (x[i], x[i + E/2])."""
    half = x.shape[1] // 2
    angles = positions.double()[:, None] * 10_000.0 ** (-torch.arange(half).double() / half)
    cos, sin = angles.cos(), angles.sin()
    a, b = x[:, :half], x[:, half:]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=1)


class Stack:
    """The attention stack of 02.debug: one head, weights [L, E, E] for queries, keys and values.

    `faults` puts mistakes in: "position" rotates the layers above the first by a count that has moved on
    already, "future" masks nothing once the cache holds something, "stale" keeps the keys at a reset.
    """

    def __init__(self, wq, wk, wv, faults: tuple[str, ...] = ()):
        self.wq, self.wk, self.wv = wq.double(), wk.double(), wv.double()
        self.faults = faults
        empty = torch.zeros(0, wq.shape[1], dtype=torch.float64)
        self.empty = [(empty, empty)] * len(wq)
        self.kept, self.seen = list(self.empty), 0

    def feed(self, x):  # [T, E] -> [T, E]
        x, T = x.double(), len(x)
        for layer in range(len(self.wq)):
            early = T if "position" in self.faults and layer > 0 else 0
            positions = torch.arange(self.seen + early, self.seen + early + T)
            q, k = rotate(x @ self.wq[layer], positions), rotate(x @ self.wk[layer], positions)
            old_k, old_v = self.kept[layer]
            k, v = torch.cat((old_k, k)), torch.cat((old_v, x @ self.wv[layer]))
            self.kept[layer] = (k, v)
            scores = q @ k.T / math.sqrt(x.shape[1])
            if len(old_k) == 0 or "future" not in self.faults:
                S = len(k)
                hidden = torch.arange(S) > torch.arange(S - T, S)[:, None]
                scores = scores.masked_fill(hidden, -math.inf)
            x = x + scores.softmax(-1) @ v
        self.seen += T
        return x

    def reset(self):
        self.seen = 0
        if "stale" not in self.faults:
            self.kept = list(self.empty)
