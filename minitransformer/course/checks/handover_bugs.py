"""The check of 10.bugs: a prefill side and a decode side with a slow link between them.

The model is the toy of exercise 09, whose next token depends on every token before it; the memory of both
sides stands here, so what is read where and when is seen as it happens.
"""

from collections.abc import Sequence

from minitransformer.course.checking import expect, expect_equal, task

VOCAB = 40


def next_token(text: Sequence[int]) -> int:
    """What the toy model says after a text."""
    state = 1
    for token in text:
        state = (31 * state + 7 * token + 3) % 100_003
    return state % VOCAB


class Reading:
    """The link reads one request's prompt out of the prefill side's blocks, `pace` tokens a step."""

    def __init__(self, name: str, token: int, table: list[int], count: int, pace: int):
        self.name, self.token, self.table, self.count, self.pace = name, token, table, count, pace
        self.cells: list = []

    @property
    def done(self) -> bool:
        return len(self.cells) == self.count

    def go_on(self, cells: dict, size: int):
        for t in range(len(self.cells), min(self.count, len(self.cells) + self.pace)):
            self.cells.append(cells.get((self.table[t // size], t % size)))


class Site:
    """Both sides, the router and the link. `asks` is {name: (prompt, max_tokens, arrival, link's pace)}."""

    def __init__(self, sides, asks: dict, blocks: tuple[int, int], sizes: tuple[int, int], given: str):
        self.asks, self.blocks, self.sizes = asks, blocks, sizes
        self.prefill, self.decode = (
            side(n, size) for side, n, size in zip(sides, blocks, sizes, strict=True)
        )
        self.given = (
            f"{given} ({blocks[0]} blocks of {sizes[0]} to prefill, {blocks[1]} of {sizes[1]} to decode)"
        )
        self.cells: tuple[dict, dict] = ({}, {})  # (block, slot) -> token, of each side
        self.streams: dict[str, list[int]] = {name: [] for name in asks}
        self.tables: dict[str, list[int]] = {}
        self.waiting: list[str] = []
        self.readings: list[Reading] = []

    def wanted(self, name: str) -> list[int]:
        prompt, count, *_ = self.asks[name]
        text = list(prompt)
        for _ in range(count):
            text.append(next_token(text))
        return text[len(prompt) :]

    def run(self):
        now, most = 0, 60 + 6 * sum(len(p) + n for p, n, *_ in self.asks.values())
        while any(len(self.streams[name]) < ask[1] for name, ask in self.asks.items()) or self.readings:
            self.waiting += [name for name, ask in self.asks.items() if ask[2] == now]
            self.reserve()
            self.prefill_step()
            self.link_step()
            self.decode_step()
            now += 1
            if now > most:
                late = [name for name, ask in self.asks.items() if len(self.streams[name]) < ask[1]]
                expect(
                    False,
                    f"For {self.given}: after {now} steps {late} has not ended. Do all blocks come back?",
                )
        for side, name, count in zip(
            (self.prefill, self.decode), ("prefill", "decode"), self.blocks, strict=True
        ):
            free, likely = sorted(side.free), [(sorted(side.free), "Blocks are lost, or on the list twice.")]
            given = f"{self.given}, when all have ended"
            expect_equal(free, list(range(count)), given, likely, name=f"the {name} side's free list")

    def reserve(self):
        """In order of arrival, decode first: a prompt is computed only when there is room for it there."""
        while self.waiting:
            name = self.waiting[0]
            prompt, count, *_ = self.asks[name]
            table = self.decode.reserve(name, list(prompt), count)
            if table is None:
                return
            self.tables[name] = list(table)
            self.prefill.add(self.waiting.pop(0), list(prompt))

    def prefill_step(self):
        rows = [(n, start, list(ids), list(table)) for n, start, ids, table in self.prefill.schedule()]
        read = {(b, r.name) for r in self.readings for b in r.table}
        for name, start, ids, table in rows:
            taken = next(((b, other) for b, other in read if b in table), None)
            if taken:
                cause = "The link reads it until read_done is called"
                expect(
                    False, f"For {self.given}: block {taken[0]} of {taken[1]} was given to {name}. {cause}."
                )
            expect_equal(
                ids, list(self.asks[name][0]), f"{self.given}, {name}", name="the row of the prefill side"
            )
            self.write(0, name, start, ids, table)
        made = {name: next_token(ids) for name, _, ids, _ in rows}
        for name, token, table in self.prefill.computed(made):
            self.streams[name].append(token)  # at once: the time to first token holds no transfer
            count, pace = len(self.asks[name][0]), self.asks[name][3]
            self.readings.append(Reading(name, token, list(table), count, pace))

    def link_step(self):
        for reading in list(self.readings):
            reading.go_on(self.cells[0], self.sizes[0])
            if reading.done:
                self.readings.remove(reading)
                self.write(1, reading.name, 0, reading.cells, self.tables[reading.name])
                self.prefill.read_done(reading.name)
                self.decode.loaded(reading.name, reading.token)

    def decode_step(self):
        rows = [(n, start, list(ids), list(table)) for n, start, ids, table in self.decode.schedule()]
        for name, start, ids, table in rows:
            self.expect_row(name, start, ids)
            self.write(1, name, start, ids, table)
        made = {}
        for name, _, _, table in rows:
            text = [*self.asks[name][0], *self.streams[name]]
            self.expect_read(name, text, table)
            made[name] = next_token(text)
        for name, tokens in dict(self.decode.update(made)).items():
            self.expect_stream(name, list(tokens))

    def expect_row(self, name: str, start: int, ids: list[int]):
        prompt, given = self.asks[name][0], f"For {self.given}, {name}"
        again = f"the decode side computes {len(ids)} tokens from {start} on: the prompt again, in secret"
        cause = "The answer is right and the transfer was for nothing; everybody's next token waits for it"
        expect(start >= len(prompt), f"{given}: {again}. {cause}.")
        text = [*prompt, *self.streams[name]]
        right = f"its row should be the last token {text[-1:]} at position {len(text) - 1}"
        expect((start, ids) == (len(text) - 1, text[-1:]), f"{given}: {right}, not {ids} at {start}.")

    def expect_stream(self, name: str, tokens: list[int]):
        stream, wanted = self.streams[name], self.wanted(name)
        came, given = stream + tokens, f"For {self.given}, {name}"
        twice = len(tokens) > 1 and tokens[0] == wanted[0] and len(stream) == 1
        cause = " The prefill side has sent the first token already." if twice else ""
        right = f"so far the user has {stream}, then should get {wanted[len(stream) : len(stream) + 1]}"
        expect(came == wanted[: len(stream) + 1], f"{given}: {right}, but {tokens} came.{cause}")
        self.streams[name] = came

    def write(self, side: int, name: str, start: int, ids: list, table: list[int]):
        size, end = self.sizes[side], start + len(ids)
        room = len(table) * size
        expect(room >= end, f"For {self.given}, {name}: {len(table)} blocks are too few for {end} tokens.")
        for i, token in enumerate(ids, start):
            self.cells[side][table[i // size], i % size] = token

    def expect_read(self, name: str, text: list[int], table: list[int]):
        size = self.sizes[1]
        came = [self.cells[1].get((table[i // size], i % size)) for i in range(len(text))]
        expect_equal(came, text, f"{self.given}, {name}", name="what the decode side's blocks hold")


def crowd(rng, count: int, longest: int, slowest: int) -> dict:
    asks = {}
    for i in range(count):
        prompt = [rng.randint(0, VOCAB) for _ in range(rng.randint(1, longest + 1))]
        asks[f"r{i}"] = (prompt, rng.randint(1, 9), rng.randint(0, 7), rng.randint(1, slowest + 1))
    return asks


@task("10.bugs", "three faults of a hand-over")
def bugs(answer, rng):
    sides = answer()
    both = isinstance(sides, (list, tuple)) and len(sides) == 2
    expect(both, "mended() should return two classes: the prefill side and the decode side.")
    prompts = [[rng.randint(0, VOCAB) for _ in range(n)] for n in (9, 6, 7)]
    alone = {"only": (prompts[0], 5, 0, 99)}
    Site(sides, alone, (4, 8), (4, 4), "one request").run()
    Site(sides, {"brief": (prompts[0], 1, 0, 2)}, (4, 8), (4, 4), "an answer of one token").run()
    slow = {"slow": (prompts[0], 4, 0, 1), "next": (prompts[1], 4, 2, 3), "last": (prompts[2], 4, 3, 9)}
    Site(sides, slow, (3, 12), (4, 4), "a slow link and little memory to prefill").run()
    for blocks, sizes in [((6, 8), (4, 4)), ((9, 7), (3, 5)), ((30, 40), (1, 2))]:
        Site(sides, crowd(rng, 8, 12, 6), blocks, sizes, "eight requests, in any order").run()
