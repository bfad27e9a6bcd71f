"""Answers to exercise 03 that are no small edit of the solution: whole cells. ex03.py says which is right."""

ROW_BY_ROW = """
def next_token_probs(logits, temperature, top_k, top_p):
    out = torch.zeros_like(logits)
    for b in range(len(logits)):
        row, t, k, p = logits[b], temperature[b].item(), int(top_k[b]), top_p[b].item()
        if t == 0:
            out[b, row.argmax()] = 1
            continue
        if 0 < k < len(row):
            row = row.masked_fill(row < row.topk(k).values[-1], float("-inf"))
        probs = (row / t).softmax(0)
        if p < 1:
            kept, mass = [], 0.0
            for i in probs.argsort(descending=True):
                kept.append(i)
                mass += probs[i].item()
                if mass >= p:
                    break
            cut = torch.ones_like(probs, dtype=torch.bool)
            cut[torch.stack(kept)] = False
            probs = probs.masked_fill(cut, 0)
        out[b] = probs / probs.sum()
    return out
"""

BY_THRESHOLD = """
def next_token_probs(logits, temperature, top_k, top_p):
    V = logits.shape[1]
    t = torch.where(temperature == 0, 1e-6, temperature)[:, None]
    k = torch.where(top_k == 0, V, top_k).clamp(max=V)
    scores = logits.double() - logits.double().max(-1, keepdim=True).values
    sorted_logits = scores.sort(-1, descending=True).values
    smallest = sorted_logits.gather(1, (k - 1)[:, None])
    probs = torch.softmax(torch.where(scores < smallest, float("-inf"), scores) / t, -1)
    order = probs.sort(-1, descending=True)
    past = order.values.cumsum(-1).roll(1, -1)
    past[:, 0] = 0
    p = torch.where(top_p >= 1, 2.0, top_p)[:, None]
    keep = torch.zeros_like(probs, dtype=torch.bool).scatter(1, order.indices, past < p)
    probs = probs * keep
    return (probs / probs.sum(-1, keepdim=True)).float()
"""

CHARACTER_BY_CHARACTER = """
class StopStream:
    def __init__(self, stop):
        self.stop, self.buffer, self.stopped = list(stop), "", False

    def push(self, piece):
        out = ""
        for character in piece:
            if self.stopped:
                break
            self.buffer += character
            ended = [s for s in self.stop if self.buffer.endswith(s)]
            if ended:
                self.stopped = True
                out += self.buffer[: -max(map(len, ended))]
                self.buffer = ""
                break
            while self.buffer and not any(s.startswith(self.buffer) for s in self.stop):
                out, self.buffer = out + self.buffer[0], self.buffer[1:]
        return out

    def finish(self):
        return self.buffer
"""

WHOLE_TEXT = """
class StopStream:
    def __init__(self, stop):
        self.stop, self.text, self.shown, self.stopped = tuple(stop), "", 0, False

    def safe(self):
        for end in range(1, len(self.text) + 1):
            starts = [end - len(s) for s in self.stop if self.text.endswith(s, 0, end)]
            if starts:
                self.stopped = True
                return min(starts)
        for start in range(len(self.text)):
            if any(s.startswith(self.text[start:]) for s in self.stop):
                return start
        return len(self.text)

    def push(self, piece):
        if self.stopped:
            return ""
        self.text += piece
        end = self.safe()
        out, self.shown = self.text[self.shown : end], end
        return out

    def finish(self):
        return "" if self.stopped else self.text[self.shown :]
"""

ONLY_IN_PIECE = """
class StopStream:
    def __init__(self, stop):
        self.stop, self.stopped = stop, False

    def push(self, piece):
        for s in self.stop:
            if s in piece and not self.stopped:
                self.stopped = True
                return piece[: piece.find(s)]
        return "" if self.stopped else piece

    def finish(self):
        return ""
"""

FIXED_HOLD = """
class StopStream:
    def __init__(self, stop):
        self.stop, self.stopped, self.held = stop, False, ""

    def push(self, piece):
        if self.stopped:
            return ""
        text = self.held + piece
        found = [(text.find(s) + len(s), text.find(s)) for s in self.stop if s in text]
        if found:
            self.stopped, self.held = True, ""
            return text[: min(found)[1]]
        n = max(len(text) - max((len(s) - 1 for s in self.stop), default=0), 0)
        self.held = text[n:]
        return text[:n]

    def finish(self):
        rest, self.held = self.held, ""
        return rest
"""

BY_POSITIONS = """
def attend(q, k, v):
    B, H, T, D = q.shape
    G, S = k.shape[1], k.shape[2]
    scores = torch.einsum("bgrtd,bgsd->bgrts", q.reshape(B, G, H // G, T, D), k) / D**0.5
    hidden = torch.arange(S)[None, :] > torch.arange(S - T, S)[:, None]
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return torch.einsum("bgrts,bgsd->bgrtd", weights, v).reshape(B, H, T, D)
"""

GROUPED_SDPA = """
from torch.nn.attention.bias import causal_lower_right

def attend(q, k, v):
    H, T, G, S = q.shape[1], q.shape[2], k.shape[1], k.shape[2]
    if T == 1:
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    k, v = (x.repeat_interleave(H // G, 1) for x in (k, v))
    bias = torch.zeros(T, S).masked_fill(~torch.ones(T, S, dtype=torch.bool).tril(S - T), float("-inf"))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
"""

WAITS_TWICE = """
def measure(gpu, arrival, num_tokens):
    stamps = []
    for i in range(num_tokens):
        gpu.decode() if stamps else gpu.prefill()
        gpu.sample()
        gpu.item()
        stamps.append(gpu.clock())
    gaps = [b - a for a, b in zip(stamps, stamps[1:])]
    return [stamps[0] - arrival, sum(gaps) / len(gaps)]
"""

WAITS_AT_THE_END = """
def measure(gpu, arrival, num_tokens):
    gpu.prefill()
    gpu.sample()
    gpu.item()
    first = gpu.clock()
    for _ in range(num_tokens - 1):
        gpu.decode()
        gpu.sample()
    gpu.item()
    return first - arrival, (gpu.clock() - first) / (num_tokens - 1)
"""
