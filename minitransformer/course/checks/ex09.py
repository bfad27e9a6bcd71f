"""Checks of exercise 09, a serving engine: the batcher to write and the engine to mend.

The model and its memory stand on this side of the check: a toy whose next token depends on every token before
it, so that whoever feeds it a wrong text, or reads another's block, gets another answer. 09.blocks is in
block_pool.py, 09.napkin and 09.admission are in serving_design.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from minitransformer.course.checking import expect, expect_equal, task
from minitransformer.course.checks import block_pool, serving_design  # noqa: F401, they register tasks

VOCAB = 40


def next_token(text: Sequence[int]) -> int:
    """What the toy model says after a text."""
    state = 1
    for token in text:
        state = (31 * state + 7 * token + 3) % 100_003
    return state % VOCAB


@dataclass
class Life:
    """What is true of one request: its text, how much of it the model has seen, whether it has ended."""

    prompt: list[int]
    max_tokens: int
    arrival: int
    text: list[int]
    computed: int = 0
    started: bool = False
    ended: bool = False

    @property
    def lacking(self) -> int:
        return len(self.text) - self.computed

    @property
    def answer(self) -> list[int]:
        return self.text[len(self.prompt) :]


def life(prompt: Sequence[int], max_tokens: int, arrival: int = 0) -> Life:
    return Life(list(prompt), max_tokens, arrival, list(prompt))


# --- 09.batcher -----------------------------------------------------------------------------------------


class World:
    """Feeds a batcher, and is the model it calls."""

    def __init__(self, make, lives: dict[str, Life], budget: int, max_running: int, end: int):
        self.batcher = make(budget, max_running, end)
        self.lives, self.budget, self.max_running, self.end = lives, budget, max_running, end
        self.now = 0
        self.given = f"budget={budget}, max_running={max_running}, {len(lives)} requests"

    @property
    def here(self) -> dict[str, Life]:
        return {n: one for n, one in self.lives.items() if one.arrival <= self.now and not one.ended}

    def run(self):
        steps = sum(len(one.prompt) + one.max_tokens for one in self.lives.values()) + 40
        while not all(one.ended for one in self.lives.values()):
            for name, one in self.lives.items():
                if one.arrival == self.now:
                    self.batcher.add(name, list(one.prompt), one.max_tokens)
            rows = self.checked(self.batcher.schedule())
            self.expect_ended(self.batcher.update(self.computed(rows)))
            self.now += 1
            expect(
                self.now < steps, f"For {self.given}: after {self.now} steps requests are still unfinished."
            )

    def checked(self, rows) -> dict[str, list[int]]:
        """The rows of a step as {name: tokens}, after a look at everything that can be wrong with them."""
        where = f"For {self.given}, step {self.now}"
        shape = isinstance(rows, (list, tuple)) and all(
            isinstance(r, (list, tuple)) and len(r) == 3 for r in rows
        )
        expect(shape, f"{where}: schedule should return a list of (name, start, tokens).")
        names = [row[0] for row in rows]
        expect(len(set(names)) == len(names), f"{where}: a request has two rows in one step: {names}.")
        for name, start, tokens in rows:
            self.expect_row(where, name, start, list(tokens))
        self.expect_limits(where, {name: list(tokens) for name, _, tokens in rows})
        return {name: list(tokens) for name, _, tokens in rows}

    def expect_row(self, where: str, name, start, tokens: list[int]):
        ended = name in self.lives and self.lives[name].ended
        expect(not ended, f"{where}: {name} has ended and is computed on.")
        expect(name in self.here, f"{where}: there is no request {name!r}.")
        one = self.here[name]
        why = "A prompt is computed once; a later row goes on where the last one ended."
        expect_equal(start, one.computed, f"{where[4:]}, {name}", [(0, why)], name="start")
        right = one.text[start : start + len(tokens)]
        expect(len(tokens) > 0, f"{where}: the row of {name} has no tokens.")
        if tokens != right:
            cause = "Is the token that was made last fed to the model again?"
            if one.computed < len(one.prompt):
                cause = "The model's token after a piece of a prompt is no part of the text."
            expect(False, f"{where}: from {start} on the text of {name} is {right}, not {tokens}. {cause}")

    def expect_limits(self, where: str, rows: dict[str, list[int]]):
        used, running = sum(map(len, rows.values())), {n for n, one in self.here.items() if one.started}
        expect(used <= self.budget, f"{where}: {used} tokens, and the budget is {self.budget}.")
        ready = [n for n in running if self.here[n].lacking == 1 and n not in rows]
        expect(not ready, f"{where}: {ready} could make a token and pause. Who runs comes first.")
        running |= set(rows)
        most = self.max_running
        expect(
            len(running) <= most, f"{where}: {len(running)} requests run at once, and max_running is {most}."
        )
        waiting = [n for n in self.here if n not in running]
        early = [
            n for n in rows if list(self.here).index(n) > min(map(list(self.here).index, waiting), default=99)
        ]
        expect(not early, f"{where}: {early} started before {waiting[:1]}, which came earlier.")
        if used < self.budget:
            rest = [n for n in running if self.here[n].lacking > len(rows.get(n, []))]
            left = f"{self.budget - used} tokens of the budget are left"
            expect(not rest, f"{where}: {left}, and {rest} has a prompt that is not read to its end.")
            free = waiting and len(running) < self.max_running
            expect(
                not free,
                f"{where}: {left} and a place is free, but {waiting[:1]} waits. {self.why_waiting()}",
            )

    def why_waiting(self) -> str:
        if any(one.ended for one in self.lives.values()):
            return "A request that has ended makes room at once; static batching waits for the whole batch."
        return "A prompt that is longer than what is left starts with a piece of it."

    def computed(self, rows: dict[str, list[int]]) -> dict[str, int]:
        """The model's part of the step: {name: the token after the row's last one}."""
        said = {}
        for name, tokens in rows.items():
            one = self.lives[name]
            one.started, one.computed = True, one.computed + len(tokens)
            said[name] = next_token(one.text[: one.computed])
            if one.lacking == 0:
                one.text.append(said[name])
                one.ended = said[name] == self.end or len(one.answer) == one.max_tokens
        self.just_ended = {name: self.lives[name].answer for name in rows if self.lives[name].ended}
        return said

    def expect_ended(self, came):
        given = f"{self.given}, after step {self.now}"
        expect(isinstance(came, dict), f"For {given}: update should return a dict {{name: answer}}.")
        late = sorted(set(self.just_ended) - set(came))
        expect(
            not late, f"For {given}: {late} has ended (max_tokens, or the end token) and update is silent."
        )
        early = sorted(set(came) - set(self.just_ended))
        cause = "The model's token after a piece of a prompt is no part of the answer."
        expect(not early, f"For {given}: {early} came back but has not ended. {cause}")
        for name, answer in self.just_ended.items():
            likely = [(answer[:-1], "The last token belongs to it."), (self.lives[name].text, "Answer only.")]
            expect_equal(list(came[name]), answer, f"{given}, {name}", likely, name="the answer")


def crowd(rng, count: int, longest: int, spread: int) -> dict[str, Life]:
    lives, arrival = {}, 0
    for i in range(count):
        prompt = [rng.randint(0, VOCAB) for _ in range(rng.randint(1, longest + 1))]
        lives[f"r{i}"] = life(prompt, rng.randint(1, 12), arrival)
        arrival += rng.randint(0, spread + 1)
    return lives


@task("09.batcher", "a continuous batcher")
def batcher(answer, rng):
    for count, longest, budget, max_running, spread in [
        (1, 1, 1, 1, 0),
        (4, 6, 64, 4, 0),
        (7, 9, 64, 2, 0),
        (6, 30, 8, 3, 1),
        (5, 12, 5, 5, 9),
        (12, 25, 12, 4, 2),
    ]:
        lives, end = crowd(rng, count, longest, spread), -1
        if count > 4:  # a token with which the request that may say the most ends at once
            end = next_token(max(lives.values(), key=lambda one: one.max_tokens).prompt)
        World(answer, lives, budget, max_running, end).run()
    World(answer, {"r0": life([1, 2, 3, 4, 5], 3)}, 4, 2, -1).run()  # a last piece of one token


# --- 09.bugs --------------------------------------------------------------------------------------------


class Memory:
    """Runs a paged engine: writes what it computes into blocks, and reads each text through its table."""

    def __init__(self, make, lives: dict[str, Life], num_blocks: int, block_size: int, given: str):
        self.engine, self.lives = make(num_blocks, block_size), lives
        self.num_blocks, self.block_size, self.given = num_blocks, block_size, given
        self.cells: dict[tuple[int, int], int] = {}
        self.first_start: dict[str, int] = {}
        self.computed: dict[str, int] = {}
        self.gave_way = False

    def run(self):
        now, steps = 0, 40 + 4 * sum(len(one.prompt) + one.max_tokens for one in self.lives.values())
        while not all(one.ended for one in self.lives.values()):
            for name, one in self.lives.items():
                if one.arrival == now:
                    self.engine.add(name, list(one.prompt), one.max_tokens)
            rows = [(n, start, list(ids), list(table)) for n, start, ids, table in self.engine.schedule()]
            for name, start, _, table in rows:
                self.expect_found(name, start, table)
            for row in rows:
                self.write(*row)
            for name, _, _, table in rows:
                self.expect_read(name, table)
            self.engine.update({name: self.say(name) for name, *_ in rows})
            now += 1
            expect(now < steps, f"For {self.given}: after {now} steps some requests have not ended.")
        free = sorted(self.engine.free)
        why = "Blocks are lost, or on the free list twice."
        given = f"{self.given}, when all have ended"
        expect_equal(free, list(range(self.num_blocks)), given, [(free, why)], name="the free list")

    def expect_found(self, name: str, start: int, table: list[int]):
        """A request that starts, or starts again, finds its own text in what it does not compute."""
        if start == self.computed.get(name):
            return
        self.gave_way |= name in self.computed
        wrong = self.first_wrong(name, table, start)
        if wrong is not None:
            what = f"block {table[wrong // self.block_size]} was found by the name of a text that it has lost"
            cause = "A block that is freed, and dealt out again, must lose its name"
            expect(False, f"For {self.given}, {name}: {what}. {cause}.")

    def first_wrong(self, name: str, table: list[int], end: int) -> int | None:
        """The first of the positions before `end` at which the table leads to another token."""
        text, size = self.lives[name].text[:end], self.block_size
        came = [self.cells.get((table[i // size], i % size)) for i in range(min(end, size * len(table)))]
        return next((i for i, (a, b) in enumerate(zip(came, text, strict=False)) if a != b), None)

    def write(self, name: str, start: int, ids: list[int], table: list[int]):
        one, where = self.lives[name], f"For {self.given}, {name}"
        expect(
            not one.ended, f"{where} has made all of its tokens and is computed on: were some not counted?"
        )
        self.first_start.setdefault(name, start)
        nothing = "no logits, and so no next token. The last token must pass through the model"
        expect(
            len(ids) > 0, f"{where}: the prefix cache held the whole text, so nothing is computed: {nothing}."
        )
        lost = "What it had made before it gave way belongs to its text: users have read it"
        ends = f"its text has {len(one.text)} tokens, but the row ends at {start + len(ids)}"
        expect(start + len(ids) == len(one.text), f"{where}: {ends}. {lost}.")
        expect(
            ids == one.text[start:], f"{where}: from {start} on the text is {one.text[start:]}, not {ids}."
        )
        room = len(table) * self.block_size
        expect(room >= len(one.text), f"{where}: {len(table)} blocks are too few for {len(one.text)} tokens.")
        for i, token in enumerate(ids, start):
            self.cells[table[i // self.block_size], i % self.block_size] = token
        self.computed[name] = start + len(ids)

    def expect_read(self, name: str, table: list[int]):
        wrong = self.first_wrong(name, table, len(self.lives[name].text))
        if wrong is not None:
            block = table[wrong // self.block_size]
            cause = "It was freed while this request held it, and dealt out again."
            what = f"block {block} of its table holds another request's tokens"
            expect(False, f"For {self.given}, {name}: {what}. {cause}")

    def say(self, name: str) -> int:
        one = self.lives[name]
        one.text.append(next_token(one.text))
        one.ended = len(one.answer) == one.max_tokens
        return one.text[-1]


def family(rng, count: int, size: int) -> dict[str, Life]:
    """Requests that begin alike, some of them a prompt of full blocks that others have wholly."""
    stem = [rng.randint(0, VOCAB) for _ in range(3 * size)]
    lives = {}
    for i in range(count):
        own = [rng.randint(0, VOCAB) for _ in range(rng.randint(0, size))]
        prompt = stem[: size * rng.randint(0, 4)] + own or stem[:1]
        lives[f"r{i}"] = life(prompt, rng.randint(1, 3 * size), rng.randint(0, 6))
    return lives


@task("09.bugs", "three bugs of small engines")
def bugs(answer, rng):
    make, size = answer(), 4
    stem = [rng.randint(0, VOCAB) for _ in range(9)]
    same = {"first": life(stem[:8], 9), "second": life(stem[:8], 3, 2)}
    Memory(make, same, 12, size, "a second request with the same prompt of two full blocks").run()
    more = {"first": life(stem, 9), "second": life(stem, 3, 2)}
    memory = Memory(make, more, 12, size, "a second request with the same prompt of two blocks and a token")
    memory.run()
    hit = "The prefix cache must go on to find what is there"
    expect(memory.first_start["second"] == 8, f"For {memory.given}, all 9 tokens were computed. {hit}.")
    brief = {"brief": life(stem, 3), "long": life(stem, 12, 1), "late": life(stem[::-1], 8, 4)}
    Memory(make, brief, 12, size, "a request that ends while another shares its blocks").run()
    again = {"long": life(stem, 12), "brief": life(stem, 3, 1), "again": life(stem, 3, 4)}
    memory = Memory(
        make, again, 12, size, "a third request, right after one of two that share blocks has ended"
    )
    memory.run()
    lost = "A block loses its name when the last who holds it lets go, not before"
    computed = "all 9 tokens were computed, though the first request still held the 8 before the last"
    expect(memory.first_start["again"] == 8, f"For {memory.given}, {computed}. {lost}.")
    tight = {f"r{i}": life(rng.permutation(VOCAB)[:7].tolist(), 9) for i in range(3)}
    memory = Memory(make, tight, 6, size, "three requests in memory for one and a half")
    memory.run()
    aside = "Was memory set aside for whole answers? Then fewer run than memory holds"
    expect(memory.gave_way, f"For {memory.given}: nobody ever gave way. {aside}.")
    for blocks, size in [(10, 4), (16, 3), (40, 2)]:
        given = f"requests with common beginnings in {blocks} blocks of {size}"
        Memory(make, family(rng, 8, size), blocks, size, given).run()
