"""Answers to exercise 02 that are no small edit of the solution: whole cells. ex02.py says which is right."""

ADVANCE_INSIDE = """
        self.v[layer, :, :, self.seq_len : end] = v
        self.seq_len = end
"""

GROWING_CACHE = """
class Cache:
    def __init__(self, num_layers, batch_size, num_kv_heads, max_seq_len, head_dim, dtype):
        self.k = [torch.zeros(batch_size, num_kv_heads, 0, head_dim, dtype=dtype) for _ in range(num_layers)]
        self.v = [x.clone() for x in self.k]
        self.max_seq_len, self.seq_len = max_seq_len, 0

    @property
    def nbytes(self):
        return sum(x.nbytes for x in self.k + self.v)

    def update(self, layer, k, v):
        if self.seq_len + k.shape[2] > self.max_seq_len:
            raise ValueError("full")
        self.k[layer] = torch.cat((self.k[layer], k), 2)
        self.v[layer] = torch.cat((self.v[layer], v), 2)
        return self.k[layer], self.v[layer]

    def advance(self, num_tokens):
        self.seq_len += num_tokens

    def select(self, rows):
        self.k, self.v = [x[rows] for x in self.k], [x[rows] for x in self.v]
"""

TOKENS_BEFORE_HEADS = """
class Cache:
    def __init__(self, num_layers, batch_size, num_kv_heads, max_seq_len, head_dim, dtype):
        self.slots = torch.empty(2, num_layers, batch_size, max_seq_len, num_kv_heads, head_dim, dtype=dtype)
        self.seq_len = 0

    @property
    def nbytes(self):
        return self.slots.numel() * self.slots.element_size()

    def update(self, layer, k, v):
        count = k.shape[2]
        if self.seq_len + count > self.slots.shape[3]:
            raise ValueError(f"no room for {count} more")
        new = torch.stack((k, v)).transpose(2, 3)
        self.slots[:, layer, :, self.seq_len : self.seq_len + count] = new
        every = self.slots[:, layer, :, : self.seq_len + count].transpose(2, 3)
        return [every[0].clone(), every[1].clone()]

    def advance(self, num_tokens):
        self.seq_len = self.seq_len + num_tokens

    def select(self, rows):
        self.slots = self.slots.index_select(2, torch.tensor(rows))
"""

ONE_TENSOR_A_LAYER = """
class CacheFull(ValueError):
    pass


class Cache:
    def __init__(self, num_layers, batch_size, num_kv_heads, max_seq_len, head_dim, dtype):
        def slots():
            return [
                torch.full((batch_size, num_kv_heads, max_seq_len, head_dim), float("nan"), dtype=dtype)
                for _ in range(num_layers)
            ]

        self.k, self.v, self.seq_len, self.room = slots(), slots(), 0, max_seq_len
        self.nbytes = 2 * sum(x.nbytes for x in self.k)

    def update(self, layer, k, v):
        start, stop = self.seq_len, self.seq_len + k.size(2)
        if stop > self.room:
            raise CacheFull(f"{stop} tokens do not fit {self.room} slots")
        for store, new in ((self.k, k), (self.v, v)):
            store[layer].narrow(2, start, new.size(2)).copy_(new)
        return tuple(store[layer].narrow(2, 0, stop) for store in (self.k, self.v))

    def advance(self, num_tokens):
        self.seq_len += num_tokens

    def select(self, rows):
        for store in (self.k, self.v):
            store[:] = [torch.stack([x[r] for r in rows]) for x in store]
        self.nbytes = 2 * sum(x.nbytes for x in self.k)
"""

OVERWRITING_SELECT = """
        old_k, old_v = self.k.clone(), self.v.clone()
        for target, source in enumerate(rows):
            if target < old_k.shape[1]:
                old_k[:, target] = old_k[:, source]
                old_v[:, target] = old_v[:, source]
            else:
                old_k = torch.cat((old_k, old_k[:, source : source + 1]), 1)
                old_v = torch.cat((old_v, old_v[:, source : source + 1]), 1)
        self.k, self.v = old_k, old_v
"""

SHARED_ROWS = """
class Cache:
    def __init__(self, num_layers, batch_size, num_kv_heads, max_seq_len, head_dim, dtype):
        shape = (2, num_layers, num_kv_heads, max_seq_len, head_dim)
        self.rows = [torch.zeros(shape, dtype=dtype) for _ in range(batch_size)]
        self.seq_len, self.room = 0, max_seq_len

    @property
    def nbytes(self):
        return sum(row.nbytes for row in self.rows)

    def update(self, layer, k, v):
        end = self.seq_len + k.shape[2]
        if end > self.room:
            raise ValueError("full")
        for row, new_k, new_v in zip(self.rows, k, v):
            row[0, layer, :, self.seq_len : end] = new_k
            row[1, layer, :, self.seq_len : end] = new_v
        every = torch.stack(self.rows)[:, :, layer, :, :end]
        return every[:, 0], every[:, 1]

    def advance(self, num_tokens):
        self.seq_len += num_tokens

    def select(self, rows):
        self.rows = [self.rows[i] for i in rows]
"""

UNCACHED = """
@torch.inference_mode()
def greedy(model, prompt, max_new_tokens, cache, chunk_size=None):
    for _ in range(max_new_tokens):
        prompt = torch.cat((prompt, model(prompt)[:, -1:].argmax(-1)), dim=1)
    return prompt
"""

WHOLE_TEXT_EACH_STEP = """
@torch.inference_mode()
def greedy(model, prompt, max_new_tokens, cache, chunk_size=None):
    for _ in range(max_new_tokens):
        cache.reset()
        prompt = torch.cat((prompt, model(prompt, cache)[:, -1:].argmax(-1)), dim=1)
    return prompt
"""

PREALLOCATED_IDS = """
@torch.inference_mode()
def greedy(model, prompt, max_new_tokens, cache, chunk_size=None):
    B, T = prompt.shape
    ids = torch.zeros(B, T + max_new_tokens, dtype=torch.long)
    ids[:, :T] = prompt
    start = 0
    while start < T:
        stop = min(start + (chunk_size or T), T)
        logits = model(ids[:, start:stop], cache, last_only=True)
        start = stop
    for t in range(T, T + max_new_tokens):
        if t > T:
            logits = model(ids[:, t - 1 : t], cache)
        ids[:, t] = logits[:, -1].argmax(dim=-1)
    return ids
"""

LAST_PROMPT_TOKEN_IS_THE_FIRST_STEP = """
def greedy(model, prompt, max_new_tokens, cache, chunk_size=None):
    with torch.no_grad():
        past, last = prompt[:, :-1], prompt[:, -1:]
        if past.shape[1]:
            for piece in torch.split(past, chunk_size or past.shape[1], dim=1):
                model(piece, cache)
        out = [prompt]
        for _ in range(max_new_tokens):
            last = model(last, cache)[:, -1].max(dim=-1).indices[:, None]
            out.append(last)
        return torch.cat(out, dim=1)
"""

RAGGED_LOOP = """
def ragged_decode(q, k_new, v_new, k_cache, v_cache, lengths):
    k_cache, v_cache = k_cache.clone(), v_cache.clone()
    out = torch.empty_like(q)
    group = q.shape[1] // k_new.shape[1]
    for b, n in enumerate(lengths.tolist()):
        k_cache[b, :, n], v_cache[b, :, n] = k_new[b], v_new[b]
        for h in range(q.shape[1]):
            k, v = k_cache[b, h // group, : n + 1], v_cache[b, h // group, : n + 1]
            out[b, h] = torch.softmax(k @ q[b, h] * q.shape[-1] ** -0.5, 0) @ v
    return out, k_cache, v_cache
"""

RAGGED_SDPA = """
def ragged_decode(q, k_new, v_new, k_cache, v_cache, lengths):
    at = lengths[:, None, None, None].expand(-1, k_new.shape[1], 1, k_new.shape[2])
    k_cache = k_cache.scatter(2, at, k_new[:, :, None])
    v_cache = v_cache.scatter(2, at, v_new[:, :, None])
    mask = (torch.arange(k_cache.shape[2])[None] <= lengths[:, None])[:, None, None]
    zero = torch.zeros(())
    out = torch.nn.functional.scaled_dot_product_attention(
        q[:, :, None],
        torch.where(mask.transpose(-1, -2), k_cache, zero),
        torch.where(mask.transpose(-1, -2), v_cache, zero),
        attn_mask=mask,
        enable_gqa=True,
    )
    return out[:, :, 0], k_cache, v_cache
"""

FRESH_STACK = """
class Layers:
    def __init__(self, wq, wk, wv):
        self.weights = list(zip(wq, wk, wv))
        self.reset()

    def reset(self):
        self.seen, self.past = 0, [None] * len(self.weights)

    def feed(self, x):
        now = torch.arange(self.seen, self.seen + len(x))
        for i, (wq, wk, wv) in enumerate(self.weights):
            q, k, v = rope(x @ wq, now), rope(x @ wk, now), x @ wv
            if self.past[i] is not None:
                k, v = torch.cat([self.past[i][0], k]), torch.cat([self.past[i][1], v])
            self.past[i] = (k, v)
            bias = torch.zeros(len(x), len(k))
            for t in range(len(x)):
                bias[t, self.seen + t + 1 :] = float("-inf")
            x = x + torch.softmax(q @ k.T / x.shape[1] ** 0.5 + bias, dim=1) @ v
        self.seen += len(now)
        return x


mended_stack = Layers
"""

COUNT_BY_LAYER = """
def mended_stack(wq, wk, wv):
    class Mended(Stack):
        def attend(self, layer, x):
            T, E = x.shape
            before = len(self.k[layer])
            positions = torch.arange(before, before + T)
            q, k = rope(x @ self.wq[layer], positions), rope(x @ self.wk[layer], positions)
            k, v = self.append(layer, k, x @ self.wv[layer])
            mask = torch.ones(T, len(k), dtype=torch.bool).tril(diagonal=before)
            return torch.where(mask, q @ k.T / math.sqrt(E), -math.inf).softmax(-1) @ v

        def reset(self):
            super().reset()
            self.k = [k[:0] for k in self.k]
            self.v = [v[:0] for v in self.v]

    return Mended(wq, wk, wv)
"""
