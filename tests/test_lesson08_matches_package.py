"""Lesson 08's cells give what the package's decode kernels give, and say where there is no record."""

import pytest
import torch
from lesson_code import built, code_cells, run_cell

from minitransformer.kernels.flash_decode import flash_decode, flash_decode_reference
from minitransformer.kernels.paged_attention import paged_attention
from minitransformer.kernels.runtime import INTERPRETED
from minitransformer.kernels.split_keys import merge_splits_reference

CELLS = code_cells("08_decode_kernels")
DEVICE = "cpu" if INTERPRETED else "cuda"


@pytest.fixture(scope="module")
def lesson() -> dict:
    """The functions and kernels that the lesson builds, after its set-up; nothing else of it is run."""
    names: dict = {"__name__": "lesson08"}
    run_cell("setup", CELLS["setup"], names)
    return built(CELLS, names)


def problem(B: int, H: int, G: int, S: int, D: int):
    torch.manual_seed(B + H + S)
    shapes = ((B, H, D), (B, G, S, D), (B, G, S, D))
    return tuple(torch.randn(shape, device=DEVICE) for shape in shapes)


def close(came: torch.Tensor, wanted: torch.Tensor) -> bool:
    allowed = 1e-5 if DEVICE == "cpu" else 1e-3  # TF32
    return bool((came - wanted).norm() <= allowed * wanted.norm())


@pytest.mark.parametrize(
    ("H", "G", "lengths", "splits"),
    [(2, 2, [40], 1), (6, 2, [70, 33], 3), (4, 1, [5, 0], 2)],
    ids=["one split", "ragged", "an empty sequence"],
)
def test_lesson_and_package_decode_alike(lesson, H, G, lengths, splits):
    q, k, v = problem(len(lengths), H, G, 72, 32)
    lens = torch.tensor(lengths, dtype=torch.int32, device=DEVICE)
    ours = lesson["flash_decode"](q, k, v, lens, splits)
    theirs = flash_decode(q[:, :, None], k, v, num_splits=splits, context_lens=lens)[:, :, 0]
    exact = flash_decode_reference(q.double()[:, :, None], k, v, context_lens=lens)[:, :, 0]
    assert close(ours, exact) and close(theirs, exact)
    assert close(ours, theirs)


@pytest.mark.parametrize("cuts", [[200], [100, 100], [7, 0, 150, 43], [0, 200]], ids=str)
def test_states_of_splits_merge_to_what_the_package_merges_them_to(lesson, cuts):
    (q, k, v) = (x[0].cpu() for x in problem(1, 4, 1, 200, 16))
    parts = zip(k[0].split(cuts), v[0].split(cuts), strict=True)
    states = [lesson["attend_split"](q, *part) for part in parts]
    m, l, acc = map(torch.stack, zip(*states, strict=True))
    whole = flash_decode_reference(q[None, :, None], k[None], v[None])[0, :, 0]
    assert close(lesson["merge"](m, l, acc).to(DEVICE), whole.to(DEVICE))
    full = l > 0
    lse = torch.where(full, m + l.log2(), -torch.inf).T
    outs = (acc / torch.where(full, l, 1.0)[..., None]).transpose(0, 1)
    wanted = merge_splits_reference(outs[None], lse[None])[0]
    assert torch.allclose(lesson["merge_splits"](outs, lse), wanted, atol=1e-6)
    assert torch.allclose(wanted, whole, atol=1e-5)


@pytest.mark.parametrize(("block", "lengths"), [(16, [70, 33]), (8, [1, 17])], ids=str)
def test_lesson_and_package_read_a_block_table_alike(lesson, block, lengths):
    B, H, G, D, blocks = 2, 4, 2, 32, 24
    table = lesson["scattered_table"](lengths, block, blocks).to(DEVICE)
    k, v = (torch.randn(blocks, block, G, D, device=DEVICE) for _ in range(2))
    q, lens = torch.randn(B, H, D, device=DEVICE), torch.tensor(lengths, dtype=torch.int32, device=DEVICE)
    ours = lesson["paged_attention"](q, k, v, table, lens, 2)
    assert close(ours, paged_attention(q, k, v, table, lens, num_splits=2))
    gathered = [lesson["gather_blocks"](x, table) for x in (k, v)]
    exact = flash_decode_reference(q.double()[:, :, None], *gathered, context_lens=lens)[:, :, 0]
    assert close(ours, exact)


def run_record_cell(lesson: dict, **names):
    """Runs the lesson's cell about records, without a GPU, with some names replaced."""
    space = dict(lesson) | {"device": torch.device("cpu"), "published_guess": None}
    space |= {"table": lambda *_, **__: None, "compare": lambda *_, **__: None} | names
    for wanted in ("published", "record"):
        source = CELLS[wanted]
        exec(source, space)


def test_the_lesson_says_in_words_that_there_is_no_record(lesson):
    said: list = []
    run_record_cell(lesson, load_record=lambda: None, note=said.append)
    assert "No record of a real GPU yet" in said[0]


@pytest.mark.parametrize("splits", [[], [{"splits": 4}]], ids=["without splits", "with splits"])
def test_the_lesson_shows_the_items_of_a_record_that_concern_it(lesson, splits):
    record = {"device": "made up", "items": {"num_splits": splits}}
    shown: list = []
    run_record_cell(
        lesson,
        load_record=lambda: record,
        show_record=lambda _, items: shown.append(items),
        record_figure=lambda record: record["items"]["num_splits"],
        show=lambda figure, caption: shown.append(figure),
    )
    assert shown == [("flash_decode", "paged_attention"), *([splits] if splits else [])]
