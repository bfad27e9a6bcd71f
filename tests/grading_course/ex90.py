"""Checks of a small made-up exercise, so that the grader's tests rest on no real one."""

import torch

from minitransformer.course.checking import Built, expect_close, expect_equal, expect_number, task


@task("90.double", title="Double")
def double(answer, rng):
    for shape in [(1,), (3, 4)]:
        x = rng.randn(*shape)
        given = f"x of shape {list(shape)}"
        expect_close(answer(x), 2 * x.double(), given, likely=[(x.double() ** 2, "that is the square")])


@task("90.counter", title="A counter with state")
def counter(answer, rng):
    steps = [rng.randint(1, 100) for _ in range(3)]
    one, other = answer(), answer()
    for step in steps:
        one.add(step)
    expect_equal(one.total, sum(steps), given=f"steps {steps}")
    expect_equal(other.total, 0, given="a second counter", name="its total")


@task(
    "90.bytes",
    title="Napkin: bytes",
    draw=lambda rng: {"layers": rng.choice([2, 4, 8, 16]), "width": rng.choice([64, 128, 256])},
    question="How many bytes do **{layers} layers** of **{width:,} float32 numbers** take?",
)
def napkin_bytes(answer, rng, figures):
    wanted = 4 * figures["layers"] * figures["width"]
    expect_number(answer, wanted, unit="B", likely=[(wanted / 4, "a float32 has four bytes")])


@task("90.logits", title="Two cells and a model")
def logits(answer, rng):
    model = Built("tiny_model", seed=rng.randint(0, 1000))
    ids = rng.randint(0, 61, 2, 5)
    with torch.no_grad():
        wanted = model.build()(ids)[:, -1]
    expect_close(answer(model, ids), wanted, given="ids of shape [2, 5]")


@task("90.choice", title="Explain")
def choice(answer, rng):
    expect_equal(answer, "memory")
