"""Whole right answers to exercise 11, each by another way than the solution's."""

NAPKIN_BY_TOKENS = """
seed = 1
f = napkin("11.napkin", seed)
tokens_per_s = f["tera"] * 1e12 * f["flops_share"] / 100 / (2e9 * f["weights"])
prefill_per_s = tokens_per_s / (f["prompt"] - f["hit"])
gb_weights = 2 * f["weights"]
gb_caches = f["batch"] * f["kv_kib"] * 1024 / 1e9 * (f["prompt"] + 0.5 * f["answer"])
step = (gb_weights + gb_caches) / (1e3 * f["terabytes"] * f["read_share"] / 100)
made_per_s = f["batch"] / step
answer = {
    "ttft_ms": round(1e3 / prefill_per_s, 1),
    "tpot_ms": round(1e3 * step, 2),
    "prefill_per_s": prefill_per_s,
    "decode_per_s": made_per_s / f["answer"],
    "machines": made_per_s / f["answer"] / prefill_per_s,
    "dollars": 1e6 / made_per_s * f["price"] / 3600
    + 1e6 / f["answer"] / prefill_per_s * f["price"] / 3600,
    "chips": -(
        -(2 * f["weights"] * 10**9 + f["batch"] * (f["prompt"] + f["answer"]) * f["kv_kib"] * 1024)
        // (f["sram_mb"] * 10**6)
    ),
}
"""

STAGES_BY_EVENTS = """
def serve(arrivals, prefill_s, tokens, machines, transfer_s, slots, fixed_s, each_s):
    events, out = [], [[None, 0.0] for _ in arrivals]
    free, line, waiting, inside, first, busy = machines, [], [], {}, {}, [False]
    for i, t in enumerate(arrivals):
        heappush(events, (t, 0, i))

    def prefill(now):
        nonlocal free
        while free and line:
            i = line.pop(0)
            free -= 1
            heappush(events, (now + prefill_s[i], 1, i))

    def step(now):
        while waiting and len(inside) < slots:
            i = heappop(waiting)[1]
            inside[i] = tokens[i] - 1
        busy[0] = bool(inside)
        if inside:
            heappush(events, (now + fixed_s + each_s * len(inside), 3, -1))

    while events:
        now = events[0][0]
        while events and events[0][0] == now:
            _, kind, i = heappop(events)
            if kind == 0:
                line.append(i)
            elif kind == 1:
                free += 1
                first[i] = now
                out[i][0] = now - arrivals[i]
                if tokens[i] > 1:
                    heappush(events, (now + transfer_s, 2, i))
            elif kind == 2:
                heappush(waiting, (now, i))
            else:
                busy[0] = False
                for j in list(inside):
                    inside[j] -= 1
                    if not inside[j]:
                        del inside[j]
                        out[j][1] = (now - first[j]) / (tokens[j] - 1)
            prefill(now)
        if not busy[0]:
            step(now)
    return out
"""

STAGES_BY_RECORDS = """
def serve(arrivals, prefill_s, tokens, machines, transfer_s, slots, fixed_s, each_s):
    ready = [0.0 for _ in range(machines)]
    people = []
    for number in range(len(arrivals)):
        ready.sort()
        begin = max(ready.pop(0), arrivals[number])
        ready.append(begin + prefill_s[number])
        person = {"number": number, "first": begin + prefill_s[number], "made": 1}
        person["there"], person["last"] = person["first"] + transfer_s, person["first"]
        people.append(person)
    outside = sorted(
        (p for p in people if tokens[p["number"]] > 1), key=lambda p: (p["there"], p["number"])
    )
    clock, batch = -math.inf, []
    while outside or batch:
        if not batch and outside[0]["there"] > clock:
            clock = outside[0]["there"]
        while outside and len(batch) < slots and outside[0]["there"] <= clock:
            batch.append(outside.pop(0))
        clock = clock + (fixed_s + len(batch) * each_s)
        for p in batch:
            p["made"] += 1
            p["last"] = clock
        batch = [p for p in batch if p["made"] < tokens[p["number"]]]
    return [
        (
            p["first"] - arrivals[p["number"]],
            0.0 if p["made"] == 1 else (p["last"] - p["first"]) / (p["made"] - 1),
        )
        for p in people
    ]
"""

PLAN_MENDED_ALONE = """
seed = 7
f = napkin("11.plan", seed)
a_request = (f["prompt"] + f["answer"] / 2) * f["kv_kib"] * 1024
left = f["tpot_ms"] / 1000 * f["terabytes"] * 1e12 - f["weights"] * 2e9
batch = math.floor(left / a_request)
running = f["rate"] * f["answer"] * f["tpot_ms"] / 1000
answer = {"step": "g", "value": batch, "prefill": 22, "decode": math.ceil(running / batch)}
"""

POOLS_BY_HAND = """
seed = 2
f = napkin("11.pools", seed)
answer = {"pools": [("prefill", "H100", 2), ("decode", "H200", 1)]}
"""

INTERVIEW_BY_HAND = """
seed = 3
f = napkin("11.interview", seed)
answer = {
    "pools": [["prefill", "H100", 3], ["decode", "H100", 2]],
    "chips": 4,
    "step_tokens": 256,
    "link_gbit": 400,
    "ttft_ms": 150,
    "tpot_ms": 24,
    "most_per_s": 13,
}
"""
