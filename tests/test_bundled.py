"""The bundled model: its text is what it claims to be, training resumes, the weights do what is reported."""

import json
import random
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from minitransformer.bundled import FOLDER, tasks, words
from minitransformer.bundled.batches import IGNORED, LISTS_ONLY, encode_row, step_batches, step_documents
from minitransformer.bundled.muon import orthogonalize
from minitransformer.bundled.report import ReportCard, seen_in_training
from minitransformer.bundled.stories import PLOTS, is_story, write_story
from minitransformer.bundled.tokenizer import make_tokenizer
from minitransformer.bundled.train import Recipe, Run, train
from minitransformer.checkpoint import load_pretrained

TINY = Recipe(32, 48, 1, 1, 1, stages=(4,))


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def test_every_written_story_is_accepted_by_the_parser():
    rng = random.Random(1)
    stories = [write_story(rng) for _ in range(500)]
    assert all(map(is_story, stories))
    assert len(set(stories)) == 500


@pytest.mark.parametrize(
    "change",
    [
        lambda story, rng: story.rsplit(" ", 1)[0],  # cut short
        lambda story, rng: story.replace(" the ", " a ", 1),  # another grammar
        lambda story, rng: story.replace("Once there was", "Once upon a time there was"),
        lambda story, rng: _last_name_changed(story, rng),  # a hero who changes name
        lambda story, rng: story + " " + story,
        lambda story, rng: "",
    ],
)
def test_a_damaged_story_is_refused(change):
    rng = random.Random(2)
    assert not any(is_story(change(write_story(rng), rng)) for _ in range(100))


def _last_name_changed(story, rng):
    head, last = story[: story.rindex(". ")], story[story.rindex(". ") :]
    name = next(w for w in last.split() if w in words.NAMES)
    return head + last.replace(name, rng.choice([n for n in words.NAMES if n not in story]))


def test_every_plot_is_told():
    rng = random.Random(3)
    stories = [write_story(rng) for _ in range(200)]
    for mark in ("lost", "So ", "storm"):
        assert any(mark in s or "could not find" in s for s in stories)
    assert len(PLOTS) == 3


def test_steps_of_a_sum_are_right_and_lead_to_its_answer():
    rng = random.Random(4)
    for _ in range(300):
        digits = rng.randint(1, tasks.MAX_DIGITS)
        document = tasks.write_sum(rng, digits=digits, steps=True)
        a, b = map(int, document.prompt.removeprefix("Steps: ").removesuffix("=").split("+"))
        steps, answer = document.answer.split(";")
        assert int(answer) == a + b == tasks.read_sum(document.answer)
        carry = 0
        for place, step in enumerate(steps.split(",")):
            x, y, c = map(int, step.split("=")[0].split("+"))
            total = int(step.split("=")[1])
            assert (x, y, c) == (a // 10**place % 10, b // 10**place % 10, carry)
            assert total == x + y + c
            carry = total // 10


def test_a_sum_of_unequal_numbers_is_padded():
    assert tasks.sum_prompt(7, 120, steps=False) == "Sum: 007+120="
    assert tasks.sum_steps(7, 120) == "7+0+0=07,0+2+0=02,0+1+0=01"


@pytest.mark.parametrize(
    "answer, number", [("12", 12), ("1+2+0=03;3", 3), ("", None), ("1+2=", None), ("x", None)]
)
def test_the_answer_of_a_sum_is_read_or_none(answer, number):
    assert tasks.read_sum(answer) == number


def test_recall_questions_are_about_the_list():
    rng = random.Random(5)
    first, *rest = tasks.write_recall(rng, items=30)
    items, question = first.prompt.removeprefix("List: ").split(".")
    things = dict(pair.split() for pair in items.split(", "))
    for asked, answer in [(question, first.answer), *((d.prompt, d.answer) for d in rest)]:
        assert answer == f" {things[asked.removeprefix(' Ask: ')]}."


def test_notes_keep_what_was_known_and_add_what_came_by():
    rng = random.Random(6)
    parts = re.compile(r"Find: (.*)\. Notes: (.*)\. List: (.*)\. Notes:")
    for _ in range(100):
        document = tasks.write_notes(rng, items=20)
        wanted, notes, items = parts.fullmatch(document.prompt).groups()
        things = dict(pair.split() for pair in items.split(", "))
        came_by = {name: things[name] for name in wanted.split() if name in things}
        assert tasks.read_notes(document.answer) == tasks.read_notes(notes) | came_by


def test_every_word_is_one_token_and_any_text_survives(tokenizer):
    for word in [*words.NAMES, *words.THINGS, *words.ANIMALS, *words.MOODS, *words.HOMES]:
        assert len(tokenizer.encode(f" {word}", add_special_tokens=False)) == 1
    for text in ("Zoë paid 3,50 € at 12:05", "日本語", " two  spaces\n"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_only_answers_are_learned(tokenizer):
    document = tasks.Document("Sum: 12+30=", "42")
    ids, learned = encode_row(tokenizer, [document])
    assert tokenizer.decode([i for i, a in zip(ids, learned, strict=True) if a]) == "42"
    assert ids[0] == tokenizer.bos_id and ids[-1] == tokenizer.eos_id and learned[-1]


def test_a_document_is_tokenized_the_same_whole_or_as_prompt_and_answer(tokenizer):
    for rows in step_documents(0, 3).values():
        for row in rows:
            whole = "".join(d.prompt + d.answer for d in row)
            assert encode_row(tokenizer, row)[0][:-1] == tokenizer.encode(whole)


def test_batches_depend_on_seed_and_step_alone(tokenizer):
    one, again, other = (step_batches(tokenizer, 0, step) for step in (5, 5, 6))
    assert all(torch.equal(one[k][0], again[k][0]) for k in one)
    assert not all(torch.equal(one[k][0], other[k][0]) for k in one)
    assert all((targets != IGNORED).any() for _, targets in one.values())


def test_muon_steps_have_singular_values_near_one():
    torch.manual_seed(0)
    for shape in ((3, 16, 16), (2, 8, 32), (1, 32, 8)):
        values = torch.linalg.svdvals(orthogonalize(torch.randn(shape)))
        assert values.min() > 0.5 and values.max() < 1.3


def test_a_stopped_training_ends_where_it_would_have_ended(tmp_path):
    train(TINY, tmp_path / "whole")
    train(TINY, tmp_path / "halves", stop_after=2)
    assert (tmp_path / "halves" / "training.pt").exists()
    train(TINY, tmp_path / "halves")
    assert not (tmp_path / "halves" / "training.pt").exists()
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "halves"))
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_training_lowers_the_loss_and_keeps_its_curve(tokenizer):
    run = Run(Recipe(32, 48, 1, 1, 1, stages=(12,), warmup_steps=1))
    first, unseen = (step_batches(tokenizer, seed, 0)["recall"] for seed in (run.recipe.seed, 1))
    at_first, before = _loss(run.model, *first), _loss(run.model, *unseen)
    for _ in range(12):
        run.take_step()
    assert _loss(run.model, *unseen) < before - 0.5
    assert run.curve[0]["recall loss"] == pytest.approx(at_first, abs=1e-3)
    assert [row["step"] for row in run.curve] == list(range(12))


def test_every_kind_of_text_of_a_step_is_in_the_curve():
    run = Run(Recipe(32, 48, 1, 1, 1, stages=(LISTS_ONLY + 1,)))
    for step, kinds in ((0, {"recall"}), (LISTS_ONLY, {"steps", "at once", "story", "recall", "notes"})):
        run.step = step
        row = run.take_step()
        assert set(row) == {"step"} | {f"{kind} {what}" for kind in kinds for what in ("loss", "accuracy")}


@torch.inference_mode()
def _loss(model, inputs, targets) -> float:
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), ignore_index=IGNORED).item()


def test_the_state_of_another_recipe_is_refused(tmp_path):
    train(TINY, tmp_path / "run", stop_after=1)
    with pytest.raises(ValueError, match="another recipe"):
        train(Recipe(32, 48, 1, 1, 1, stages=(5,)), tmp_path / "run")


# The shipped weights.


def reported(name: str) -> dict:
    return json.loads((FOLDER / name / "report.json").read_text())


def test_the_two_models_fit_in_16_mb():
    assert sum(f.stat().st_size for f in Path(FOLDER).rglob("*") if f.is_file()) < 16e6


def test_the_draft_shares_the_vocabulary_and_is_smaller():
    main, draft = load_pretrained("bundled"), load_pretrained("bundled-draft")
    assert main[1].backend.to_str() == draft[1].backend.to_str()
    assert draft[0].config.num_parameters < main[0].config.num_parameters / 3


def test_the_report_meets_the_targets():
    figures = reported("main")
    longest = str(tasks.MAX_DIGITS)
    steps, at_once = figures["sums with steps"], figures["sums at once"]
    assert steps["all"] >= 0.95
    assert steps["by digits"][longest] >= at_once["by digits"][longest] + 0.20
    assert all(share >= 0.95 for share in figures["recall"]["by items"].values())
    assert figures["stories"]["accepted"] >= 0.95


def test_the_shipped_weights_do_what_is_reported():
    """A smaller sample, measured again: within four standard errors of the report."""
    figures, samples = reported("main"), 60
    model, tokenizer = load_pretrained("bundled")
    recipe = json.loads((FOLDER / "main" / "training.json").read_text())["recipe"]
    card = ReportCard(model, tokenizer, samples, seen_in_training(recipe | {"stages": [20]}))
    measured = {
        "sums with steps": card.sums(steps=True)["all"],
        "sums at once": card.sums(steps=False)["all"],
        "recall": card.recall()["all"],
        "notes": card.notes()["one piece"],
        "stories": card.stories()["accepted"],
    }
    for kind, share in measured.items():
        told = figures[kind].get("all", figures[kind].get("one piece", figures[kind].get("accepted")))
        error = (max(told * (1 - told), 0.01) / samples) ** 0.5
        assert abs(share - told) <= 4 * error, (kind, share, told)
