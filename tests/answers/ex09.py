"""Answers to exercise 09 that are wrong in ways that people really write, and other right ones.

Most are the solution with a small change (edits.py).
"""

from answers.edits import Solution
from answers.ex09_whole import (
    BY_COUNTS_ALONE,
    BY_HOLDERS,
    BY_NAMES,
    BY_ROUNDS,
    DESIGN_BY_TRIAL,
    MENDED_AT_THE_ROOT,
    MENDED_IN_START,
    NAPKIN_BY_TOKENS,
    TEXTBOOK_DESIGN,
)

SOLUTION = Solution("09_serving_engine")
napkin = SOLUTION.edits("napkin-answer")
blocks = SOLUTION.edits("blocks-answer")
batcher = SOLUTION.edits("batcher-answer")
bugs = SOLUTION.edits("bugs-answer")
design = SOLUTION.edits("admission-answer")


REFUSES = """        for block, times in Counter(blocks).items():
            if times > self.counts[block]:
                raise ValueError(f"block {block} is freed {times} times and held {self.counts[block]} times")
"""
SHARES = """        if any(self.counts[block] == 0 for block in blocks):
            raise ValueError(f"some of {blocks} are free: nobody can share them")
"""
TOO_FEW = """        if needed > len(self.unused):
            return None
"""
FREES = """            if self.counts[block] == 0:
                self.unused.append(block)
"""
DECODES = """        for request in decoding:
            left -= compute(request, min(left, 1))
"""
FIND = "    def find_prefix"
RELEASE = "    def release"
PREEMPT = "    def preempt"

FREES_ONCE = "for block in set(blocks):\n            self.counts[block] -= 1"
STARVES = 'if request not in decoding and left and len(request["text"]) - request["computed"] > 1:'

ANSWERS = {
    "09.napkin": {
        "wrong": {
            "keys without values": napkin(("= 2 * f", "= f")),
            "one layer": napkin(('f["layers"] * ', "")),
            "bits for bytes": napkin((" // 8", "")),
            "no whole blocks": napkin(('-(-f["length"] // f["block"])', 'f["length"] / f["block"]')),
            "rounds a request down": napkin(('-(-f["length"] // f["block"])', 'f["length"] // f["block"]')),
            "shares a partly common block": napkin(
                ('f["system"] // f["block"]', '-(-f["system"] // f["block"])')
            ),
            "the shared blocks for nothing": napkin(("(num_blocks - common) //", "num_blocks //")),
            "what is used": napkin(
                ('100 * (1 - f["length"] / f["longest"])', '100 * f["length"] / f["longest"]')
            ),
        },
        "right": {
            "in tokens": NAPKIN_BY_TOKENS,
            "shares rounded": napkin(
                ('100 * (1 - f["length"] / f["longest"])', 'round(100 * (1 - f["length"] / f["longest"]), 1)')
            ),
        },
    },
    "09.blocks": {
        "wrong": {
            "freed twice in silence": blocks((REFUSES, "")),
            "a shared block freed": blocks(
                ("            if self.counts[block] == 0:\n                self", "            self"),
            ),
            "nobody's at the first": blocks(("self.counts[block] -= 1\n", "self.counts[block] = 0\n")),
            "found out too late": blocks(
                (REFUSES, ""),
                (
                    "            self.counts[block] -= 1\n",
                    "            self.counts[block] -= 1\n            if "
                    "self.counts[block] < 0:\n                raise ValueError('freed twice')\n",
                ),
            ),
            "looks at each by itself": blocks(
                (
                    "for block, times in Counter(blocks).items():",
                    "for block, times in [(b, 1) for b in blocks]:",
                )
            ),
            "lets go once of what is named twice": blocks(
                ("for block in blocks:\n            self.counts[block] -= 1", FREES_ONCE),
            ),
            "shares what is free": blocks((SHARES, "")),
            "shares until one is free": blocks(
                (SHARES, ""),
                (
                    "        for block in blocks:\n            self.counts[block] += 1\n",
                    "        for block in blocks:\n            if self.counts[block] == 0:\n"
                    "                raise ValueError(block)\n            self.counts[block] += 1\n",
                ),
            ),
            "one block too many": blocks(
                ("-(-num_tokens // self.block_size)", "num_tokens // self.block_size + 1")
            ),
            "no block for the rest": blocks(
                ("-(-num_tokens // self.block_size)", "num_tokens // self.block_size")
            ),
            "raises where too few are free": blocks((TOO_FEW, "")),
            "gives what there is": blocks((TOO_FEW, "        needed = min(needed, len(self.unused))\n")),
            "writes into a shared block": blocks(("if self.counts[block] == 1:", "if True:")),
            "the old block stays held": blocks(
                ("        self.free([block])\n        return copy", "        return copy")
            ),
            "always copies": blocks(("        if self.counts[block] == 1:\n            return block\n", "")),
        },
        "right": {"by counts alone": BY_COUNTS_ALONE, "a set of holders": BY_HOLDERS},
    },
    "09.batcher": {
        "wrong": {
            "static batches": batcher(
                ("while left and self.waiting", "while not rows and left and self.waiting")
            ),
            "prompts first": batcher(
                (DECODES.replace("min(left, 1)", "1"), ""),
                ("        return rows\n", f"{DECODES}        return rows\n"),
            ),
            "whole prompts": batcher(
                ("left -= compute(self.running[-1], left)", "left -= compute(self.running[-1], 999)")
            ),
            "starts whole prompts only": batcher(
                (
                    "len(self.running) < self.max_running:",
                    'len(self.running) < self.max_running and len(self.waiting[0]["text"]) <= left:',
                )
            ),
            "computes everything again": batcher(('start = request["computed"]', "start = 0")),
            "the token of a piece": batcher((' or request["computed"] < len(request["text"])', "")),
            "does not see the end": batcher(("token == self.end or ", "")),
            "one token too many": batcher(('len(answer) == request["max"]', 'len(answer) > request["max"]')),
            "drops the end token": batcher(
                ("= answer\n", "= answer[:-1] if token == self.end else answer\n")
            ),
            "the newest first": batcher(("self.waiting.popleft()", "self.waiting.pop()")),
            "more than may run": batcher((" and len(self.running) < self.max_running", "")),
            "prompt in the answer": batcher(
                ('ended[request["name"]] = answer', 'ended[request["name"]] = request["text"]')
            ),
            "starves a last piece of one token": batcher(
                ('- r["computed"] == 1]', '- r["computed"] == 1 and r["computed"] >= r["prompt"]]'),
                ("if request not in decoding and left:", STARVES),
            ),
            "never makes room": batcher(("                self.running.remove(request)\n", "")),
        },
        "right": {"a row a request, by rounds": BY_ROUNDS, "state by name": BY_NAMES},
    },
    "09.bugs": {
        "wrong": {
            "as given": bugs(("    return Engine", "    return BrokenEngine")),
            "the whole text found": bugs((FIND, "    def other_find_prefix")),
            "frees what is shared": bugs((RELEASE, "    def other_release")),
            "loses the answer": bugs((PREEMPT, "    def other_preempt")),
            "shares nothing": bugs(("return super().find_prefix(tokens[:-1])", "return []")),
            "counts the lost tokens again": bugs(
                (
                    "            self.waiting.insert",
                    '            request["left"] += len(request["tokens"]) - len('
                    'request["prompt"])\n            request["tokens"] = list(request["prompt"])\n'
                    "            self.waiting.insert",
                ),
            ),
            "never frees": bugs(("            self.free.extend(unheld)\n", "")),
            "keeps the names of freed blocks": bugs(("if b not in unheld}", "}")),
            "drops names of blocks that are held": bugs(("if b not in unheld}", "if b not in blocks}")),
            "sets memory aside": bugs(
                (
                    "    class Engine(BrokenEngine):\n",
                    "    class Engine(BrokenEngine):\n        def blocks_for(self, request):\n"
                    '            whole = len(request["tokens"]) + request["left"]\n'
                    "            return -(-whole // self.block_size)\n\n",
                ),
            ),
        },
        "right": {"in start": MENDED_IN_START, "every method anew": MENDED_AT_THE_ROOT},
    },
    "09.admission": {
        "wrong": {
            "no limit to the queue": design(("max_waiting = int(0.75", "max_waiting = 10_000 + int(0.75")),
            "a budget without a look at TPOT": design(("budget = int((0.9", "budget = 1000 + int((0.9")),
            "one token too many": design(
                ("budget = int((0.9 * f", "budget = 1 + int((1.0 * f"),
            ),
            "a short queue": design(("max_waiting = int(0.75", "max_waiting = int(0.4")),
            "answers for nothing": design(("budget / (prompt + answer_tokens)", "budget / prompt")),
            "steps as long as promised": design(
                ("answer_tokens) / step_s", 'answer_tokens) / (f["tpot_ms"] / 1000)'),
                ("* answer_tokens * step_s", '* answer_tokens * f["tpot_ms"] / 1000'),
            ),
            "twice as many places": design(("max_running = int(1.2", "max_running = int(2.4")),
            "as many running as the budget": design(
                ("max_running = int(1.2", "max_running = budget - 2 + 0 * int(1.2")
            ),
            "a tiny budget": design(("budget = int((0.9", "budget = 48 + 0 * int((0.9")),
            "few at a time": design(("max_running = int(1.2", "max_running = 8 + 0 * int(1.2")),
            "nobody waits": design(("max_waiting = int(0.75", "max_waiting = 1 + 0 * int(0.75")),
            "as many as arrive": design(
                ("served_per_s = budget /", 'served_per_s = f["rate"] + 0 * budget /')
            ),
            "in tokens": design(
                ("served_per_s = budget / (prompt + answer_tokens)", "served_per_s = budget"),
                ("int(1.2 * served_per_s", "int(1.2 / (prompt + answer_tokens) * served_per_s"),
                ("1000 * served_per_s)", "1000 * served_per_s / (prompt + answer_tokens))"),
            ),
            "running without an eye on the budget": design(
                ("max_running = int(1.2", "max_running = budget + int(1.2")
            ),
        },
        "right": {
            "more in hand": design(("0.9 * f", "0.85 * f"), ("0.75 *", "0.7 *")),
            "as in a textbook": TEXTBOOK_DESIGN,
            "by trial": DESIGN_BY_TRIAL,
        },
    },
}
