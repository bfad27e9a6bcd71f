"""Whole right answers to exercise 09, each by another way than the solution's."""

NAPKIN_BY_TOKENS = """
seed = 4
f = napkin("09.napkin", seed)
per_token = f["layers"] * f["kv_heads"] * f["head_dim"] * 2 * (f["bits"] / 8)
blocks = int(f["cache_gb"] * 1e9 / (per_token * f["block"]))
last = f["length"] % f["block"]
room = f["length"] + (f["block"] - last if last else 0)
common = f["system"] - f["system"] % f["block"]
answer = {
    "block_bytes": per_token * f["block"],
    "num_blocks": blocks,
    "rows": int(f["cache_gb"] * 1e9 / per_token / f["longest"]),
    "batch": int(blocks * f["block"] / room),
    "rows_unused": (f["longest"] - f["length"]) / f["longest"] * 100,
    "blocks_unused": (room - f["length"]) / room * 100,
    "shared_batch": int((blocks * f["block"] - common) / (room - common)),
}
"""

BY_COUNTS_ALONE = """
class BlockPool:
    def __init__(self, num_blocks, block_size):
        self.held, self.size = [0] * num_blocks, block_size

    @property
    def num_free(self):
        return self.held.count(0)

    def allocate(self, num_tokens):
        free = [b for b, n in enumerate(self.held) if not n]
        needed = (num_tokens + self.size - 1) // self.size
        if len(free) < needed:
            return None
        for b in free[:needed]:
            self.held[b] += 1
        return tuple(free[:needed])

    def share(self, blocks):
        if 0 in [self.held[b] for b in blocks]:
            raise ValueError("free")
        for b in blocks:
            self.held[b] += 1

    def free(self, blocks):
        after = list(self.held)
        for b in blocks:
            after[b] -= 1
        if min(after) < 0:
            raise ValueError("freed twice")
        self.held = after

    def writable(self, block):
        if self.held[block] < 2:
            return block
        if not self.num_free:
            return None
        new = self.held.index(0)
        self.held[block], self.held[new] = self.held[block] - 1, 1
        return new
"""

BY_HOLDERS = """
class NotHeld(ValueError):
    pass


class BlockPool:
    def __init__(self, num_blocks, block_size):
        self.queue, self.size, self.holds = deque(range(num_blocks)), block_size, {}

    @property
    def num_free(self):
        return len(self.queue)

    def allocate(self, num_tokens):
        needed = num_tokens // self.size + bool(num_tokens % self.size)
        if needed <= len(self.queue):
            new = [self.queue.popleft() for _ in range(needed)]
            self.holds.update(dict.fromkeys(new, 1))
            return new

    def share(self, blocks):
        for b in blocks:
            if b not in self.holds:
                raise NotHeld(b)
        for b in blocks:
            self.holds[b] += 1

    def free(self, blocks):
        left = Counter(self.holds)
        left.subtract(blocks)
        if any(n < 0 for n in left.values()):
            raise NotHeld(blocks)
        self.queue.extend(b for b, n in left.items() if n == 0)
        self.holds = {b: n for b, n in left.items() if n}

    def writable(self, block):
        if self.holds[block] == 1:
            return block
        if self.queue:
            self.holds[block] -= 1
            return self.allocate(1)[0]
"""

BY_ROUNDS = """
class Batcher:
    def __init__(self, budget, max_running, end):
        self.budget, self.max_running, self.end = budget, max_running, end
        self.queue = []  # everyone who has not ended, in order of arrival: the first few run

    def add(self, name, prompt, max_tokens):
        self.queue.append([name, list(prompt), [], 0, max_tokens])

    def schedule(self):
        running = self.queue[: self.max_running]
        lacking = {r[0]: len(r[1]) + len(r[2]) - r[3] for r in running}
        share = {r[0]: 1 for r in running if r[3] and lacking[r[0]] == 1}
        left = self.budget - len(share)
        for r in running:
            if r[0] not in share:
                share[r[0]] = min(lacking[r[0]], left)
                left -= share[r[0]]
        self.rows = [r for r in running if share[r[0]]]
        out = []
        for r in self.rows:
            text = r[1] + r[2]
            out.append([r[0], r[3], text[r[3] : r[3] + share[r[0]]]])
            r[3] += share[r[0]]
        return out

    def update(self, next_tokens):
        ended = {}
        for name, prompt, answer, computed, most in self.rows:
            if computed == len(prompt) + len(answer):
                answer.append(next_tokens[name])
                if answer[-1] == self.end or len(answer) >= most:
                    ended[name] = answer
        self.queue = [r for r in self.queue if r[0] not in ended]
        return ended
"""

BY_NAMES = """
class Batcher:
    def __init__(self, budget, max_running, end):
        self.budget, self.max_running, self.end = budget, max_running, end
        self.text, self.limit, self.done, self.prompt, self.active = {}, {}, {}, {}, []

    def add(self, name, prompt, max_tokens):
        self.text[name], self.prompt[name] = list(prompt), len(prompt)
        self.limit[name], self.done[name] = len(prompt) + max_tokens, 0

    def schedule(self):
        waiting = [n for n in self.text if n not in self.active]
        order = sorted(self.active, key=lambda n: len(self.text[n]) - self.done[n] > 1)
        order += waiting[: self.max_running - len(self.active)]
        rows, left = [], self.budget
        for name in order:
            piece = self.text[name][self.done[name] :][:left]
            if piece:
                rows.append((name, self.done[name], piece))
                left -= len(piece)
                if name not in self.active:
                    self.active.append(name)
        self.counts = {name: len(piece) for name, _, piece in rows}
        return rows

    def update(self, next_tokens):
        out = {}
        for name, n in self.counts.items():
            self.done[name] += n
            if self.done[name] == len(self.text[name]):
                self.text[name].append(next_tokens[name])
                if next_tokens[name] == self.end or len(self.text[name]) == self.limit[name]:
                    out[name] = self.text.pop(name)[self.prompt[name] :]
                    self.active.remove(name)
        return out
"""

MENDED_IN_START = """
def mended_engine():
    class Mended(BrokenEngine):
        def start(self, request):
            started = super().start(request)
            if started:  # the last token once more, into the block where it stands already
                request["computed"] = min(request["computed"], len(request["tokens"]) - 1)
            return started

        def release(self, blocks):
            for block in blocks:
                if self.counts[block] > 1:
                    self.counts[block] -= 1
                else:
                    BrokenEngine.release(self, [block])

        def preempt(self, request):
            text = request["tokens"]
            super().preempt(request)
            request["tokens"] = text

    return Mended
"""

MENDED_AT_THE_ROOT = """
def mended_engine():
    class Mended(BrokenEngine):
        def add(self, name, prompt, max_tokens):
            super().add(name, prompt, max_tokens)
            self.waiting[-1]["prompt"] = self.waiting[-1]["tokens"]  # one list: what gives way loses nothing

        def find_prefix(self, tokens):
            found = super().find_prefix(tokens)
            return found[: (len(tokens) - 1) // self.block_size]

        def release(self, blocks):
            for block in reversed(blocks):
                self.counts[block] -= 1
                if not self.counts[block]:
                    self.free.append(block)
                    for text in [t for t, b in self.block_of.items() if b == block]:
                        del self.block_of[text]

        def preempt(self, request):
            request["prompt"] = request["tokens"]
            super().preempt(request)

    return Mended
"""

TEXTBOOK_DESIGN = """
import math

seed = 2
f = napkin("09.admission", seed)
budget = math.floor((f["tpot_ms"] - f["fixed_ms"]) * 1000 / f["token_us"])
prompt = (f["least_prompt"] + f["most_prompt"]) / 2
length = (f["least_answer"] + f["most_answer"]) / 2
rate = 1000 / f["tpot_ms"] * budget / (prompt + length)
answer = {
    "budget": budget,
    "max_running": math.ceil(rate * length * f["tpot_ms"] / 1000),
    "max_waiting": math.floor(0.8 * rate * f["ttft_ms"] / 1000),
    "served_per_s": rate,
}
"""

DESIGN_BY_TRIAL = """
import math

seed = 2
f = napkin("09.admission", seed)
tokens = (f["least_prompt"] + f["most_prompt"] + f["least_answer"] + f["most_answer"]) / 2


def step_ms(budget):
    return f["fixed_ms"] + budget * f["token_us"] / 1000


budget = max(b for b in range(1, 5000) if step_ms(b) < 0.93 * f["tpot_ms"])
rate = budget / tokens / step_ms(budget) * 1000
answer = {
    "budget": budget,
    "max_running": math.ceil(1.1 * budget * (f["least_answer"] + f["most_answer"]) / 2 / tokens),
    "max_waiting": max(n for n in range(2000) if n / rate < 0.65 * f["ttft_ms"] / 1000),
    "served_per_s": round(rate, 1),
}
"""
