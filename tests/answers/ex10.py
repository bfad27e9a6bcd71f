"""Answers to exercise 10 that are wrong in ways that people really write, and other right ones.

Most are the solution with a small change (edits.py).
"""

from answers.edits import Solution
from answers.ex10_whole import (
    DESIGN_BY_TRIAL,
    MENDED_BY_OWN_CLASSES,
    MENDED_IN_THE_STEPS,
    NAPKIN_BY_TOKENS,
    TRANSFER_BY_FLAT_SLOTS,
    TRANSFER_TOKEN_BY_TOKEN,
)

SOLUTION = Solution("10_disaggregation")
napkin = SOLUTION.edits("napkin-answer")
transfer = SOLUTION.edits("transfer-answer")
bugs = SOLUTION.edits("bugs-answer")
pools = SOLUTION.edits("pools-answer")

SENDS_FROM = "start = self.num_sent.get(layer, self.num_cached_there)"
GATHERS = "torch.stack((k_blocks[where], v_blocks[where]))"
READS = "    def read_done(self, name):"
MESSAGE = '{"layer": layer, "start": start, "kv": torch.stack((k_blocks[where], v_blocks[where]))}'

DESIGN = """    "decode_machines": decode_machines,
"""
AFTER_ABORT = """        if self.aborted:
            return
"""
FREES_LATE = """    def schedule(self):
            self.free.extend(self.__dict__.pop("late", []))
            return super().schedule()
"""
KEEPS_FOR_LATER = """            self.late = getattr(self, "late", []) + self.tables[name]
            return list(self.tables[name])"""

ANSWERS = {
    "10.napkin": {
        "wrong": {
            "keys without values": napkin(("= 2 * f", "= f")),
            "sends what is cached": napkin(('(f["prompt"] - f["cached"])', 'f["prompt"]')),
            "bytes for bits": napkin(("sent_bytes * 8 /", "sent_bytes /")),
            "one FLOP a weight": napkin(("1000 * 2 * f", "1000 * f")),
            "computes only what is sent": napkin(
                ('* 1e9 * f["prompt"]', '* 1e9 * (f["prompt"] - f["cached"])')
            ),
            "waits for all of it": napkin(("waits_ms = send +", "waits_ms = transfer_ms + 0 * send +")),
            "what the prefill does not cover": napkin(
                ("waits_ms = send +", "waits_ms = max(0, transfer_ms - prefill_ms) + 0 * send +")
            ),
            "the ratio of tokens": napkin(
                ('f["isl"] / f["prefill_rate"]', 'f["isl"]'), ('f["osl"] / f["decode_rate"]', 'f["osl"]')
            ),
            "a ratio upside down": napkin(("machine_ratio = (", "machine_ratio = 1 / (")),
        },
        "right": {
            "by tokens": NAPKIN_BY_TOKENS,
            "rounded": napkin(('"link_share": link_share', '"link_share": round(link_share, 1)')),
        },
    },
    "10.transfer": {
        "wrong": {
            "everything again at each chunk": transfer((SENDS_FROM, "start = self.num_cached_there")),
            "what is cached there too": transfer((SENDS_FROM, "start = self.num_sent.get(layer, 0)")),
            "one count for all layers": transfer(
                ("self.num_sent.get(layer,", "self.num_sent.get(0,"),
                ("self.num_sent[layer]", "self.num_sent[0]"),
            ),
            "an empty message": transfer(
                ("        if start >= num_computed:\n            return None\n", "")
            ),
            "keys alone": transfer((GATHERS, "k_blocks[where][None].repeat(1, 1, 1, 1)")),
            "keys twice": transfer((GATHERS, "torch.stack((k_blocks[where], k_blocks[where]))")),
            "widened": transfer((GATHERS, f"{GATHERS}.float()")),
            "whole blocks": transfer(
                (
                    "positions = torch.arange(start, num_computed)",
                    "positions = torch.arange(start // size * size, -(-num_computed // size) * size)",
                ),
            ),
            "the sender's block size": transfer(
                (MESSAGE, MESSAGE.replace('"start"', '"size": size, "start"')),
                ("size = self.caches[0].shape[2]", 'size = message["size"]'),
            ),
            "in order of coming": transfer(
                ('message["start"], message["kv"]', 'getattr(self, "at", 0), message["kv"]'),
                (
                    "        self.has[layer].update",
                    "        self.at = start + kv.shape[1]\n        self.has[layer].update",
                ),
            ),
            "counts messages": transfer(
                (
                    "self.has[layer].update(positions.tolist())",
                    "self.has[layer] = set(range(len(self.has[layer]) + len(positions)))",
                ),
            ),
            "ready with the first message": transfer(
                ("== self.num_lacking", "> 0"),
            ),
            "writes after the end": transfer((AFTER_ABORT, "")),
            "complete though aborted": transfer(
                (
                    "        self.aborted = True",
                    "        self.aborted, self.num_lacking = True, len(self.has[0])",
                ),
                ("return not self.aborted and all", "return all"),
            ),
            "ready before it is written": transfer(
                (
                    "        for cache, new in zip(self.caches, kv, strict=True):",
                    "        self.has[layer].update(positions.tolist())\n"
                    "        new = layer, blocks, positions % size, kv\n"
                    "        self.late = [*getattr(self, 'late', []), new]\n"
                    "        for at, held, slots, both in self.late if self.complete() else []:\n"
                    "          for cache, new in zip(self.caches, both, strict=True):",
                ),
                (
                    "            cache[layer, blocks, positions % size] = new",
                    "            cache[at, held, slots] = new",
                ),
            ),
            "complete() forgets the abort": transfer(("return not self.aborted and all", "return all")),
            "a block off": transfer(
                ("positions // size]\n        for cache", "(positions - start) // size]\n        for cache")
            ),
        },
        "right": {
            "token by token": TRANSFER_TOKEN_BY_TOKEN,
            "flat slots": TRANSFER_BY_FLAT_SLOTS,
            "two tensors": transfer(
                (f'"kv": {GATHERS}', '"k": k_blocks[where], "v": v_blocks[where]'),
                (
                    'message["start"], message["kv"]',
                    'message["start"], torch.stack((message["k"], message["v"]))',
                ),
            ),
        },
    },
    "10.bugs": {
        "wrong": {
            "as given": bugs(("return Prefill, Decode", "return BrokenPrefill, BrokenDecode")),
            "the prompt again": bugs(
                ('            request["computed"] = len(request["tokens"])  # the', "            # the")
            ),
            "the first token twice": bugs(
                ('            request["told"] = len(request["tokens"]) + 1', "            #")
            ),
            "a block freed too soon": bugs(
                ("        def finish(self, name):", "        def other_finish(self, name):"),
                ("self.free.extend(self.tables.pop(name))", "pass"),
            ),
            "a step later is not enough": bugs(
                (READS, f"{FREES_LATE}\n    {READS}"),
                ("            return list(self.tables[name])", KEEPS_FOR_LATER),
                ("self.free.extend(self.tables.pop(name))", "pass"),
            ),
            "never freed": bugs(("self.free.extend(self.tables.pop(name))", "self.tables.pop(name)")),
            "freed twice": bugs(
                (
                    "return list(self.tables[name])",
                    "self.free.extend(self.tables[name])\n            return list(self.tables[name])",
                )
            ),
            "computed counts the first token": bugs(
                (
                    'request["computed"] = len(request["tokens"])',
                    'request["computed"] = len(request["tokens"]) + 1',
                )
            ),
            "drops a token": bugs(
                (
                    'request["told"] = len(request["tokens"]) + 1',
                    'request["told"] = len(request["tokens"]) + 2',
                )
            ),
            "blocks of a short answer kept": bugs(
                (
                    "            super().loaded(name, first_token)",
                    '            if request["left"] > 1:\n                super().loaded(name, first_token)',
                )
            ),
        },
        "right": {"in the steps": MENDED_IN_THE_STEPS, "classes of one's own": MENDED_BY_OWN_CLASSES},
    },
    "10.pools": {
        "wrong": {
            "everything where it decodes": pools(('local_below = f["most_turn"] + 1', "local_below = 10**6")),
            "no prefill machines": pools(
                (DESIGN, DESIGN.replace("machines,", "machines + prefill_machines,", 1)),
                ('"prefill_machines": prefill_machines', '"prefill_machines": 0'),
            ),
            "the cheapest link": pools(("link_gbps = min(", "link_gbps = 10 + 0 * min(")),
            "the fastest link": pools(("link_gbps = min(", "link_gbps = 400 + 0 * min(")),
            "nothing in hand": pools(("int(busy / 0.65) + 1", "max(1, int(busy))")),
            "too many to prefill": pools(("int(busy / 0.65) + 1", "int(busy / 0.25) + 1")),
            "one machine to decode": pools(
                ('    "decode_machines": decode_machines', '    "decode_machines": 1')
            ),
            "too many to decode": pools(
                ('    "decode_machines": decode_machines', '    "decode_machines": decode_machines + 6')
            ),
            "gigabytes": pools(
                (
                    'kv_gbps = fresh_rate * fresh * f["kv_kb"] * 8e3',
                    'kv_gbps = fresh_rate * fresh * f["kv_kb"] * 1e3',
                )
            ),
            "all prompts travel": pools(("kv_gbps = fresh_rate * fresh", 'kv_gbps = f["rate"] * fresh')),
            "a link that is not sold": pools(("link_gbps = min(", "link_gbps = 50 + 0 * min(")),
        },
        "right": {
            "by trial": DESIGN_BY_TRIAL,
            "one more to prefill": pools(("int(busy / 0.65) + 1", "int(busy / 0.65) + 2")),
            "a limit between": pools(('f["most_turn"] + 1', '(f["most_turn"] + f["least_fresh"]) // 2')),
        },
    },
}
