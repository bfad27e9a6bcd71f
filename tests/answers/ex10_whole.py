"""Whole right answers to exercise 10, each by another way than the solution's."""

NAPKIN_BY_TOKENS = """
seed = 4
f = napkin("10.napkin", seed)
per_token = f["layers"] * f["kv_heads"] * f["head_dim"] * 2 * (f["bits"] / 8)
new = f["prompt"] - f["cached"]
bytes_per_s = f["gbps"] / 8 * 1e9
transfer = new * per_token / bytes_per_s
prefill = f["prompt"] * 2 * f["billions"] / (f["tflops"] * 1e3)
sent = 0.0
for layer in range(f["layers"]):
    computed = (layer + 1) * prefill / f["layers"]
    sent = max(sent, computed) + transfer / f["layers"]
answer = {
    "sent_bytes": new * per_token,
    "transfer_ms": transfer * 1e3,
    "prefill_ms": prefill * 1e3,
    "link_share": transfer / prefill * 100,
    "waits_ms": (sent - prefill) * 1e3,
    "machine_ratio": f["isl"] * f["decode_rate"] / f["osl"] / f["prefill_rate"],
}
"""

TRANSFER_TOKEN_BY_TOKEN = """
class Sender:
    def __init__(self, block_table, num_cached_there):
        self.table, self.first, self.done = block_table, num_cached_there, set()

    def layer_written(self, layer, k_blocks, v_blocks, num_computed):
        new = [t for t in range(self.first, num_computed) if (layer, t) not in self.done]
        if not new:
            return
        self.done.update((layer, t) for t in new)
        size = len(k_blocks[0])
        places = [(self.table[t // size], t % size) for t in new]
        k = [k_blocks[block, slot].clone() for block, slot in places]
        v = [v_blocks[block, slot].clone() for block, slot in places]
        return (layer, new, k, v)


class Receiver:
    def __init__(self, k_cache, v_cache, block_table, num_cached, num_tokens):
        self.k, self.v, self.table = k_cache, v_cache, block_table
        self.lacking = [set(range(num_cached, num_tokens)) for _ in k_cache]
        self.dead = False

    def take(self, message):
        if not self.dead:
            layer, tokens, ks, vs = message
            size = self.k.shape[2]
            for t, k, v in zip(tokens, ks, vs):
                self.k[layer, self.table[t // size], t % size] = k
                self.v[layer, self.table[t // size], t % size] = v
                self.lacking[layer].discard(t)

    def layer_ready(self, layer):
        return not self.lacking[layer]

    def complete(self):
        return not self.dead and not any(self.lacking)

    def abort(self):
        self.dead = True
"""

TRANSFER_BY_FLAT_SLOTS = """
def slots(table, size, tokens):
    return torch.tensor([table[t // size] * size + t % size for t in tokens])


class Sender:
    def __init__(self, block_table, num_cached_there):
        self.table, self.cached, self.sent = block_table, num_cached_there, {}

    def layer_written(self, layer, k_blocks, v_blocks, num_computed):
        start = max(self.cached, self.sent.get(layer, 0))
        self.sent[layer] = max(start, num_computed)
        if num_computed > start:
            at = slots(self.table, k_blocks.shape[1], range(start, num_computed))
            kv = [blocks.flatten(0, 1)[at] for blocks in (k_blocks, v_blocks)]
            return {"at": [layer, start, num_computed], "kv": kv}


class Receiver:
    def __init__(self, k_cache, v_cache, block_table, num_cached, num_tokens):
        self.flat = k_cache.flatten(1, 2), v_cache.flatten(1, 2)  # views: one row of slots a layer
        self.table, self.size = block_table, k_cache.shape[2]
        self.missing = torch.zeros(len(k_cache), num_tokens, dtype=torch.bool)
        self.missing[:, num_cached:] = True

    def take(self, message):
        if self.table is None:
            return
        layer, start, end = message["at"]
        at = slots(self.table, self.size, range(start, end))
        for flat, new in zip(self.flat, message["kv"]):
            flat[layer].index_copy_(0, at, new)
        self.missing[layer, start:end] = False

    def layer_ready(self, layer):
        return not self.missing[layer].any().item()

    def complete(self):
        return self.table is not None and not self.missing.any().item()

    def abort(self):
        self.table = None
"""

MENDED_IN_THE_STEPS = """
def mended():
    class Prefill(BrokenPrefill):
        def computed(self, next_tokens):
            return [(name, token, list(self.tables[name])) for name, token in next_tokens.items()]

        def read_done(self, name):
            self.finish(name)

    class Decode(BrokenDecode):
        def schedule(self):
            last = [(r, len(r["tokens"]) - 1) for r in self.running]
            return [(r["name"], at, r["tokens"][at:], list(r["table"])) for r, at in last]

        def update(self, next_tokens):
            return {name: tokens[-1:] for name, tokens in super().update(next_tokens).items()}

    return Prefill, Decode
"""

MENDED_BY_OWN_CLASSES = """
class GoodPrefill(BrokenPrefill):
    def __init__(self, num_blocks, block_size):
        super().__init__(num_blocks, block_size)
        self.read_from = {}

    def finish(self, name):
        self.read_from[name] = self.tables.pop(name)
        return tuple(self.read_from[name])

    def read_done(self, name):
        self.free += self.read_from.pop(name)


class GoodDecode(BrokenDecode):
    def reserve(self, name, prompt, max_tokens):
        table = super().reserve(name, prompt, max_tokens)
        if table is not None:
            self.loading[name].update(computed=len(prompt), told=len(prompt) + 1)
        return table


def mended():
    return [GoodPrefill, GoodDecode]
"""

DESIGN_BY_TRIAL = """
seed = 3
f = napkin("10.pools", seed)


def mean(name):
    return (f["least_" + name] + f["most_" + name]) / 2


fresh = f["rate"] * f["fresh_percent"] / 100
per_machine = 1000 / (f["fixed_ms"] + mean("fresh") * f["token_us"] / 1000)
prefill = next(n for n in range(1, 99) if fresh / n < 0.7 * per_machine)


def tpot_ms(machines):
    turns = (f["rate"] - fresh) / machines * mean("turn") * f["token_us"] / 1e6  # share of the time
    step = f["step_ms"]
    for _ in range(50):
        running = f["rate"] / machines * mean("answer") * step / 1000
        step = min(1000, (f["step_ms"] + f["seq_us"] / 1000 * running) / (1 - turns))
    return step


decode = next(n for n in range(1, 99) if tpot_ms(n) < 0.92 * f["tpot_ms"])
makes = f["kv_kb"] * 8 / f["token_us"]  # Gb/s of a busy prefill machine
answer = {
    "prefill_machines": prefill,
    "decode_machines": decode,
    "link_gbps": [link for link in (10, 25, 100, 400) if link > 1.2 * makes][0],
    "local_below": f["least_fresh"],
    "kv_gbps": round(fresh * mean("fresh") * f["kv_kb"] * 8 / 1e6, 2),
}
"""
