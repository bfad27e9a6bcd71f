"""Answers to exercise 02 that are wrong in ways that people really write, and other right ones.

Most are the solution with a small change (edits.py).
"""

from answers.edits import Solution
from answers.ex02_whole import (
    ADVANCE_INSIDE,
    COUNT_BY_LAYER,
    FRESH_STACK,
    GROWING_CACHE,
    LAST_PROMPT_TOKEN_IS_THE_FIRST_STEP,
    ONE_TENSOR_A_LAYER,
    OVERWRITING_SELECT,
    PREALLOCATED_IDS,
    RAGGED_LOOP,
    RAGGED_SDPA,
    SHARED_ROWS,
    TOKENS_BEFORE_HEADS,
    UNCACHED,
    WHOLE_TEXT_EACH_STEP,
)

SOLUTION = Solution("02_kv_cache")
cache = SOLUTION.edits("cache-answer")
generate = SOLUTION.edits("generate-answer")
ragged = SOLUTION.edits("ragged-answer")
debug = SOLUTION.edits("debug-answer")
fit = SOLUTION.edits("fit-answer")


def napkin(old: str, new: str) -> str:
    return SOLUTION.edited("kv-bytes-answer", (old, new))


ORIGINAL = "def mended_stack(wq, wk, wv):\n    return Stack(wq, wk, wv)\n"
BUMP = ("self.k[layer] = torch.cat((self.k[layer], k))", "self.seen += len(k) * (layer == 0)\n            "
        "self.k[layer] = torch.cat((self.k[layer], k))")  # fmt: skip
FREE = '"free_gb": free_gb'

ANSWERS = {
    "02.kv_bytes": {
        "wrong": {
            "forgot the values": napkin('2 * f["layers"]', 'f["layers"]'),
            "counted the query heads": napkin('f["kv_heads"] * f["head_dim"]', 'f["heads"] * f["head_dim"]'),
            "one layer only": napkin('2 * f["layers"]', "2"),
            "bits for bytes": napkin(' * f["bits"] / 8', ' * f["bits"]'),
            "GiB for GB": napkin("/ 1e9", "/ 2**30"),
            "ratio the other way round": napkin('f["heads"] / f["kv_heads"]', 'f["kv_heads"] / f["heads"]'),
            "weights take no memory": napkin(' - f["weights_gb"]', ""),
            "all of the memory": napkin("0.9 * ", ""),
            "rounded up": napkin("largest_batch = int(", "largest_batch = 1 + int("),
            "one chip alone": napkin('0.9 * f["chips"] * ', "0.9 * "),
        },
        "right": {
            "bytes each, floor division": SOLUTION.edited(
                "kv-bytes-answer",
                ('f["bits"] / 8', '(f["bits"] // 8)'),
                ("int((", "math.floor(("),
            ),
            "from the back": SOLUTION.edited(
                "kv-bytes-answer",
                ("bytes_per_token = 2 * ", "bytes_per_token = sum([1, 1]) * "),
                ('bytes_per_token * f["context"] / 1e9', 'f["context"] * bytes_per_token * 1e-9'),
            ),
        },
    },
    "02.cache": {
        "wrong": {
            "returns every slot": cache(
                ("[layer, :, :, :end], self.v[layer, :, :, :end]", "[layer], self.v[layer]")
            ),
            "returns the new ones alone": cache(
                ("return self.k[layer, :, :, :end], self.v[layer, :, :, :end]", "return k, v")
            ),
            "the position moves in update": cache(
                ("\n        self.v[layer, :, :, self.seq_len : end] = v\n", ADVANCE_INSIDE),
                ("self.seq_len += num_tokens", "pass"),
            ),
            "always writes at the front": cache(("self.seq_len : end] =", ": k.shape[2]] =")),
            "nbytes of the keys alone": cache(("self.k.nbytes + self.v.nbytes", "self.k.nbytes")),
            "nbytes counts numbers": cache(
                ("self.k.nbytes + self.v.nbytes", "self.k.numel() + self.v.numel()")
            ),
            "grows by concatenation": GROWING_CACHE,
            "ignores the dtype": cache(("dtype=dtype", "dtype=torch.float32")),
            "a full cache is left to torch": cache(("if end > slots:", "if False:")),
            "one slot too few": cache(("if end > slots:", "if end >= slots:")),
            "writes before it refuses": cache(
                (
                    "        if end > slots:",
                    "        self.k[layer, :, :, : k.shape[2]] = k\n        if end > slots:",
                )
            ),
            "writes what fits, then refuses": cache(
                (
                    "        if end > slots:",
                    "        free = slots - self.seq_len\n"
                    "        self.k[layer, :, :, self.seq_len : end] = k[:, :, :free]\n"
                    "        self.v[layer, :, :, self.seq_len : end] = v[:, :, :free]\n"
                    "        if end > slots:",
                )
            ),
            "writes the keys, then refuses": cache(
                (
                    "        if end > slots:",
                    "        self.k[layer, :, :, self.seq_len : end] = k[:, :, : slots - self.seq_len]\n"
                    "        if end > slots:",
                )
            ),
            "counts, then refuses": cache(
                (
                    "            raise ValueError(",
                    "            self.seq_len = slots\n            raise ValueError(",
                )
            ),
            "select overwrites rows": cache(
                ("\n        self.k, self.v = self.k[:, rows], self.v[:, rows]\n", OVERWRITING_SELECT)
            ),
            "select shares rows": SHARED_ROWS,
            "select forgets the values": cache(
                ("self.k[:, rows], self.v[:, rows]", "self.k[:, rows], self.v[:, : len(rows)]")
            ),
            "select sorts the rows": cache(
                ("self.k[:, rows], self.v[:, rows]", "self.k[:, sorted(rows)], self.v[:, sorted(rows)]")
            ),
        },
        "right": {
            "tokens before heads, one tensor": TOKENS_BEFORE_HEADS,
            "a tensor for each layer": ONE_TENSOR_A_LAYER,
        },
    },
    "02.generate": {
        "wrong": {
            "no cache": UNCACHED,
            "the whole text in each step": WHOLE_TEXT_EACH_STEP,
            "feeds the prompt twice": generate(
                (
                    "    ids = [prompt, logits",
                    "    cache.reset()\n"
                    "    for piece in prompt.split(chunk_size or prompt.shape[1], dim=1):\n"
                    "        logits = model(piece, cache)\n    ids = [prompt, logits",
                )
            ),
            "feeds the last token too": generate(
                (
                    "    return torch.cat(ids, dim=1)",
                    "    model(ids[-1], cache)\n    return torch.cat(ids, dim=1)",
                )
            ),
            "the first position's logits": generate(
                ("ids = [prompt, logits[:, -1:]", "ids = [prompt, logits[:, :1]")
            ),
            "forgets the chunks": generate(("chunk_size or prompt.shape[1]", "prompt.shape[1]")),
            "one token at a time": generate(("chunk_size or prompt.shape[1]", "1")),
            "returns the new tokens alone": generate(("torch.cat(ids, dim=1)", "torch.cat(ids[1:], dim=1)")),
            "one token too few": generate(("range(max_new_tokens - 1)", "range(max_new_tokens - 2)")),
            "drops a rest that fills no chunk": generate(
                (
                    "prompt.split(",
                    "prompt[:, : prompt.shape[1] // (chunk_size or 1) * (chunk_size or 1)].split(",
                )
            ),
            "samples instead of taking the likeliest": generate(
                (
                    "ids.append(logits[:, -1:].argmax(-1))",
                    "ids.append(torch.multinomial(logits[:, -1].softmax(-1), 1))",
                )
            ),
        },
        "right": {
            "ids in one tensor": PREALLOCATED_IDS,
            "the prompt's last token as first step": LAST_PROMPT_TOKEN_IS_THE_FIRST_STEP,
        },
    },
    "02.ragged": {
        "wrong": {
            "masks scores, not values": ragged(("scores.softmax(-1) @ v)", "scores.softmax(-1) @ v_cache)")),
            "the new token is not seen": ragged(("torch.arange(S) <= ", "torch.arange(S) < ")),
            "sees one slot too many": ragged(
                ("torch.arange(S) <= lengths[:, None]", "torch.arange(S) <= lengths[:, None] + 1")
            ),
            "all rows as long as the longest": ragged(
                ("torch.arange(S) <= lengths[:, None]", "torch.arange(S).expand(B, S) <= lengths.max()")
            ),
            "writes at the longest row's end": ragged(("[rows, :, lengths]", "[rows, :, lengths.max()]")),
            "overwrites the last token": ragged(
                ("[rows, :, lengths]", "[rows, :, (lengths - 1).clamp(min=0)]")
            ),
            "heads dealt out like cards": ragged(
                ("q.view(B, G, H // G, D)", "q.view(B, H // G, G, D).transpose(1, 2)"),
                ("(scores.softmax(-1) @ v).reshape", "(scores.softmax(-1) @ v).transpose(1, 2).reshape"),
            ),
            "no scale": ragged((" / math.sqrt(D)", "")),
            "forgets to write the values": ragged(("    v_cache[rows, :, lengths] = v_new\n", "")),
            "returns the output alone": ragged(("reshape(B, H, D), k_cache, v_cache", "reshape(B, H, D)")),
        },
        "right": {
            "a loop over rows and heads": RAGGED_LOOP,
            "the library's attention with a mask": RAGGED_SDPA,
        },
    },
    "02.debug": {
        "wrong": {
            "nothing changed": ORIGINAL,
            "positions still move at layer 0": debug(
                BUMP, ("            self.seen += len(x)  # once a piece, after the last layer\n", "")
            ),
            "still no mask in later pieces": debug(
                (
                    "(q @ k.T / math.sqrt(E)).masked_fill(hidden, -math.inf)",
                    "(q @ k.T / math.sqrt(E)).masked_fill(hidden & (len(k) == T), -math.inf)",
                )
            ),
            "a mask aligned top left": debug(
                (
                    "torch.arange(len(k)) > positions[:, None]",
                    "torch.arange(len(k)) > torch.arange(T)[:, None]",
                )
            ),
            "old keys survive a reset": debug(("self.__init__(self.wq, self.wk, self.wv)", "self.seen = 0")),
            "reset forgets the position": debug(
                (
                    "self.__init__(self.wq, self.wk, self.wv)",
                    "self.k, self.v = ([x[:0] for x in kept] for kept in (self.k, self.v))",
                )
            ),
            "counts one token a piece": debug(("self.seen += len(x)", "self.seen += 1")),
            "counts in every layer": debug(
                (
                    "            return self.k[layer], self",
                    "            self.seen += len(k)\n            return self.k[layer], self",
                ),
                ("            self.seen += len(x)  # once a piece, after the last layer\n", ""),
            ),
        },
        "right": {
            "positions from each layer's own length": COUNT_BY_LAYER,
            "written afresh": FRESH_STACK,
        },
    },
    "02.fit": {
        "wrong": {
            "the weights take no memory": fit((' - f["weights_gb"] / chips', "")),
            "the whole memory is usable": fit(("0.9 * ", "")),
            "splits heads into fractions": fit(("math.ceil(kv_heads / chips)", "(kv_heads / chips)")),
            "splits heads into eighths": fit(("math.ceil(kv_heads / chips)", "(kv_heads / chips / 8)")),
            "one head, keys alone": fit(('"one_head_gb": one_head_gb', '"one_head_gb": one_head_gb / 2')),
            "GiB for GB": fit(("/ 1e9", "/ 2**30")),
            "quality does not matter": fit(('<= f["budget"] + 1e-9', "<= 99")),
            "one chip size up": fit(
                ("chips = min(n for n in (1, 2, 4, 8)", "chips = 2 * min(n for n in (1, 2, 4)")
            ),
            "keys without values": fit(('2 * f["layers"]', 'f["layers"]')),
            "free memory of all chips": fit((FREE, '"free_gb": free_gb * chips')),
        },
        "right": {
            "another design of the same price": fit(
                ("in (16, 8, 4)\n", "in (4, 8, 16)\n"),
                ("in (64, 32, 16, 8, 4, 2, 1)", "in (1, 2, 4, 8, 16, 32, 64)"),
            ),
            "rounded to whole percents": fit((FREE, '"free_gb": float(f"{free_gb:.3g}")')),
        },
    },
}
