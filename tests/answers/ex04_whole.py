"""Whole right answers to exercise 04, each by another way than the solution's."""

NAPKIN_BY_COST_MODEL = """
seed = 3
f = napkin("04.napkin", seed)
per_weight = f["bits"] / 8
ridge = f["tflops"] * 1e3 / f["gb_s"]
critical = ridge / (2 / per_weight)
kv_gb = 4e-9 * f["layers"] * f["kv_heads"] * f["head_dim"]
token_s = 2e-3 * f["billions"] / f["tflops"]
pass_s = f["billions"] * per_weight / f["gb_s"]
crossover = token_s / (kv_gb / f["gb_s"])
ttft_ms, short_ms = (1000 * pass_s * max(1, f[n] / critical) for n in ("prompt", "short"))
cache_s = f["batch"] * f["context"] * kv_gb / f["gb_s"]
tpot_ms = 1000 * (pass_s * max(1, f["batch"] / critical) + cache_s)
crowd_s = f["crowd"] * (token_s + f["short_context"] * kv_gb / f["gb_s"])
tokens_an_hour = 3600 * f["batch"] / (tpot_ms / 1000)
answer = {
    "critical_batch": critical,
    "crossover_context": crossover,
    "ttft_ms": round(ttft_ms, 2),
    "tpot_ms": round(tpot_ms, 2),
    "short_ttft_ms": short_ms,
    "crowd_tpot_ms": 1000 * crowd_s,
    "dollars": f["price"] / (tokens_an_hour / 1e6),
}
"""

TOKEN_BY_TOKEN = """
def attention_cost(new, past, chunk_size, heads, kv_heads, head_dim, act_bytes, cache_bytes):
    flops, moved = 0, 0.0
    for n, p in zip(new, past):
        for token in range(p + 1, p + n + 1):
            flops += 2 * (2 * heads * head_dim) * token
            moved += 2 * heads * head_dim * act_bytes
            if token == p + n or (token - p) % chunk_size == 0:
                moved += token * 2 * kv_heads * head_dim * cache_bytes
    return [flops, moved]
"""

ARITHMETIC_SERIES = """
def attention_cost(new, past, chunk_size, heads, kv_heads, head_dim, act_bytes, cache_bytes):
    pairs = sum(n * p + n * (n + 1) / 2 for n, p in zip(new, past))
    ends = [
        p + min(start + chunk_size, n) for n, p in zip(new, past) for start in range(0, n, chunk_size)
    ]
    q, kv = heads * head_dim, kv_heads * head_dim
    return 4 * q * pairs, 2 * (sum(new) * q * act_bytes + sum(ends) * kv * cache_bytes)
"""

PROFILE_BY_RIDGE = """
def read_profile(rows, peak, bandwidth):
    ridge = peak / bandwidth
    out = {"bound": {}, "share": {}, "impossible": [], "first": None}
    most = float("-inf")
    for name, flops, moved, seconds in sorted(rows):
        limit = "compute" if flops / moved > ridge else "memory"
        share = flops / seconds / peak if limit == "compute" else moved / seconds / bandwidth
        out["bound"][name], out["share"][name] = limit, share
        if share > 1:
            out["impossible"].insert(0, name)
        if seconds * (1 - share) > most:
            most, out["first"] = seconds * (1 - share), name
    return out
"""

PROFILE_TABLE = """
def read_profile(rows, peak, bandwidth):
    names = [row[0] for row in rows]
    clocks = [(row[1] / peak, row[2] / bandwidth) for row in rows]
    took = [row[3] for row in rows]
    first = max(range(len(rows)), key=lambda i: took[i] - max(clocks[i]))
    return dict(
        bound={n: ("memory", "compute")[c[0] > c[1]] for n, c in zip(names, clocks)},
        share={n: max(c) / t for n, c, t in zip(names, clocks, took)},
        impossible=tuple(n for n, c, t in zip(names, clocks, took) if max(c) > t),
        first=names[first],
    )
"""

MFU_BY_TOKEN = """
def mfu(config, chip, lengths, padded_to, runs):
    E, D = config["hidden"], config["head_dim"]
    H, G = config["heads"], config["kv_heads"]
    useful = 0.0
    for n in lengths:
        per_token = 2 * E * D * (2 * H + 2 * G) + 6 * E * config["ffn"]
        seen = 2 * H * D * n  # on average n / 2 tokens, four operations each
        useful += n * (config["layers"] * (per_token + seen) + 2 * E * config["vocab"])
    dense = chip["bf16_tflops"] / 2 if chip["with_sparsity"] else chip["bf16_tflops"]
    return useful / min(runs) / dense / 1e12
"""

KNOBS_BY_HAND = """
seed = 2
f = napkin("04.knobs", seed)
F, W, N = f["tflops"] * 1e12, f["gb_s"] * 1e9, f["billions"] * 1e9


def times(on):
    many = 1 + ("two_chips" in on)
    F2 = F * many * f["arithmetic_times"] ** ("arithmetic" in on)
    W2 = W * many * f["memory_times"] ** ("memory" in on)
    B = f["batch"] * 0.5 ** ("half_batch" in on)
    b = 2 * 0.25 ** ("int4_weights" in on)
    kv = 4 * f["layers"] * f["kv_heads"] * f["head_dim"] * 0.5 ** ("half_kv_heads" in on)
    star = F2 * b / 2 / W2
    comm = (many - 1) * f["layers"] * f["comm_us"] / 1e6
    first = N * b / W2 * max(1, f["prompt"] / star) + comm
    step = N * b / W2 * max(1, B / star) + B * f["context"] * kv / W2 + comm
    return first, step, B / step


names = ("two_chips", "arithmetic", "memory", "half_kv_heads", "int4_weights", "half_batch")
base = times(())
good = []
for bits in range(64):
    on = [n for i, n in enumerate(names) if bits >> i & 1]
    first, step, rate = times(on)
    if 1e3 * first <= f["ttft_target"] and 1e3 * step <= f["tpot_target"] and rate >= 0.9999 * base[2]:
        good.append(on)
alone = times(["two_chips"])
answer = {
    "two_chips_ttft_ms": 1e3 * alone[0],
    "two_chips_tpot_ms": round(1e3 * alone[1], 1),
    "ttft": {n for n in names if times([n])[0] <= 0.9 * base[0]},
    "tpot": tuple(n for n in names if times([n])[1] <= 0.9 * base[1]),
    "turn": min(reversed(good), key=len),
}
"""
