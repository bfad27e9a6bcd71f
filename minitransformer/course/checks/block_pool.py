"""The check of 09.blocks: a block pool with reference counts, beside a shadow of who holds what."""

from collections import Counter

from minitransformer.course.checking import CheckFailed, expect, expect_equal, expect_raises, task


class Shadow:
    """What is true: how many hold each block. Blocks are whatever numbers the learner deals out."""

    def __init__(self, pool, num_blocks: int, block_size: int):
        self.pool, self.num_blocks, self.block_size = pool, num_blocks, block_size
        self.count: Counter = Counter()
        self.story = f"a pool of {num_blocks} blocks of {block_size}"

    @property
    def num_free(self) -> int:
        return self.num_blocks - sum(n > 0 for n in self.count.values())

    def allocate(self, num_tokens: int) -> list[int] | None:
        needed = -(-num_tokens // self.block_size)
        given = f"{self.story}, {self.num_free} of them free, allocate({num_tokens})"
        came = self.pool.allocate(num_tokens)
        if needed > self.num_free:
            expect(came is None, f"For {given}, None should come: it needs {needed}. {came!r} came.")
        else:
            expect(isinstance(came, (list, tuple)), f"For {given}, a list of {needed} blocks should come.")
            expect_equal(len(came), needed, given, self._sizes(num_tokens), name="the number of blocks")
            held = [b for b in came if self.count[b] > 0]
            why = "A block is free only when nobody holds it any more, and then it is there once."
            expect(not held, f"For {given}, block {held[:1]} came, but somebody holds it already. {why}")
            expect(len(set(came)) == needed, f"For {given}, the same block came twice: {came}. {why}")
            valid = all(isinstance(b, int) and 0 <= b < self.num_blocks for b in came)
            expect(valid, f"For {given}, blocks should be numbers from 0 to {self.num_blocks - 1}: {came}.")
            self.count.update(came)
        self.expect_free(given)
        return None if came is None else list(came)

    def _sizes(self, n: int) -> list[tuple[int, str]]:
        return [
            (n // self.block_size, "A last block that is only partly filled is needed too."),
            (n // self.block_size + 1, "Tokens that fill their blocks just so need no further one."),
            (n, "A block holds several tokens."),
        ]

    def share(self, blocks: list[int]):
        self.pool.share(list(blocks))
        self.count.update(blocks)
        self.expect_free(f"{self.story}, share({blocks})")

    def free(self, blocks: list[int], unless: str = ""):
        """`unless` says what has gone wrong before, if this goes wrong."""
        shared = any(self.count[b] > 1 for b in blocks)
        try:
            self.pool.free(list(blocks))
        except CheckFailed as failed:
            raise CheckFailed(f"For {self.story}: {unless} {failed}" if unless else str(failed)) from None
        self.count.subtract(blocks)
        why = unless or ("A block that others still hold must stay theirs." if shared else "")
        self.expect_free(f"{self.story}, free({blocks})", why)

    def refused(self, method: str, blocks: list[int], because: str):
        given = f"{self.story}, {method}({blocks})"
        expect_raises("ValueError", lambda: getattr(self.pool, method)(list(blocks)), given, because)
        self.expect_free(f"{given}, which was refused", "Look at all blocks before you change any.")

    def writable(self, block: int):
        holders, free = self.count[block], self.num_free
        given = f"{self.story}, {free} free, writable({block}) with {holders} holder(s)"
        came = self.pool.writable(block)
        if holders == 1:
            expect_equal(came, block, given, name="the block")
        elif free == 0:
            expect(
                came is None, f"For {given}, None should come: nothing is left to copy into. {came!r} came."
            )
        else:
            mine = came != block and isinstance(came, int) and self.count[came] == 0
            expect(mine, f"For {given}, a free block should come, since others read this one. {came!r} came.")
            self.count.subtract([block])
            self.count[came] += 1
        self.expect_free(given)
        return came

    def expect_free(self, given: str, why: str = ""):
        likely = [(None, "")] if not why else [(n, why) for n in range(self.num_blocks + 1)]
        expect_equal(self.pool.num_free, self.num_free, f"{given}, then", likely, name="num_free")


@task("09.blocks", "blocks with reference counts")
def blocks(answer, rng):
    directed(Shadow(answer(4, 8), 4, 8))
    copies(Shadow(answer(3, 2), 3, 2))
    named_twice(Shadow(answer(4, 8), 4, 8))
    for num_blocks, block_size in [(1, 1), (7, 4), (12, 16), (30, 3)]:
        wander(Shadow(answer(num_blocks, block_size), num_blocks, block_size), rng)


def directed(pool: Shadow):
    mine = pool.allocate(17)
    pool.allocate(9)  # does not fit
    pool.share(mine[:2])  # a second request holds the first two
    pool.free(mine)
    pool.refused("free", [mine[2]], "nobody holds this block any more: it is freed twice")
    pool.refused("free", [mine[0], mine[2]], "nobody holds the second of them any more")
    pool.refused("free", [mine[0], mine[0]], "it is held once and named twice")
    pool.refused("share", [mine[1], mine[2]], "what nobody holds can't be shared")
    counted = (
        f"share({[mine[1], mine[2]]}) was refused and has changed something all the same: block {mine[1]}"
    )
    pool.free([mine[1]], f"{counted} has one holder. Look at all blocks before you change any.")
    pool.allocate(16)
    pool.free(mine[:1])
    pool.allocate(16)


def copies(pool: Shadow):
    old = pool.allocate(1)
    pool.share(old)
    new = pool.writable(old[0])
    let_go = (
        f"writable({old[0]}) gave a copy to one of two holders, so one is left. Does the other let go of it"
    )
    pool.free(old, f"{let_go}, once?")
    pool.free([new])
    mine = pool.allocate(4)
    pool.share(mine)
    pool.share(mine)
    copy = pool.writable(mine[1])
    pool.writable(mine[0])  # nothing left to copy into
    changed = f"writable({mine[0]}) found nothing to copy into: three hold it, as before"
    pool.free([mine[0], copy], f"{changed}.")
    pool.writable(mine[1])
    pool.free(mine)


def named_twice(pool: Shadow):
    """Two holders let go in one call."""
    held = pool.allocate(8)
    pool.share(held)
    pool.free(held + held, f"block {held[0]} has two holders and is named twice, so both let go of it.")
    pool.allocate(32)


def wander(pool: Shadow, rng):
    """Random requests that come, share, write and go."""
    tables: list[list[int]] = []
    for _ in range(60):
        move = rng.randint(0, 4)
        if move == 0 or not tables:
            table = pool.allocate(rng.randint(1, 4 * pool.block_size + 1))
            tables += [] if table is None else [table]
        elif move == 1:
            whole = rng.choice(tables)
            part = whole[: rng.randint(1, len(whole) + 1)]
            pool.share(part)
            tables.append(list(part))
        elif move == 2:
            pool.free(tables.pop(rng.randint(0, len(tables))))
        else:
            table = rng.choice(tables)
            i = rng.randint(0, len(table))
            came = pool.writable(table[i])
            table[i] = table[i] if came is None else came
    for table in tables:
        pool.free(table)
