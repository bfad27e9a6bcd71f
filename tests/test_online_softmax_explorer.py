"""The tile-by-tile picture of lesson 07 computes attention, and shows what it computes."""

import pytest
import torch

from minitransformer.course.explorers import online_softmax as explorer
from minitransformer.course.figures import Panel
from minitransformer.layers.attention import causal_mask, reference_attention

SHAPES = [(16, 24, 8, 4, 4), (7, 7, 4, 3, 2), (1, 9, 4, 4, 4), (5, 11, 4, 2, 5), (4, 4, 2, 8, 8)]


def problem(T, S, D, block_t, block_s, scale=1.0):
    torch.manual_seed(T + S)
    q, k, v = scale * torch.randn(T, D), torch.randn(S, D), torch.randn(S, D)
    return explorer.Problem(q, k, v, block_t, block_s)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("causal", [True, False])
def test_the_last_state_holds_attention(shape, causal):
    p = problem(*shape, scale=6.0)
    last = explorer.states(p, causal)[-1]
    if causal:
        wanted = reference_attention(p.q[None, None], p.k[None, None], p.v[None, None])[0, 0]
    else:
        wanted = (p.q @ p.k.T * p.q.shape[1] ** -0.5).softmax(-1) @ p.v
    assert torch.allclose(last.acc / last.l[:, None], wanted, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_state_is_the_softmax_over_the_keys_seen_so_far(shape):
    p = problem(*shape)
    T, S = len(p.q), len(p.k)
    scores = (p.q @ p.k.T * p.q.shape[1] ** -0.5).masked_fill(~causal_mask(T, S), -torch.inf)
    visited = torch.zeros(T, S, dtype=torch.bool)
    for tile, state in zip(p.tiles, explorer.states(p, True)[1:], strict=True):
        visited[tile] = True
        so_far = scores.masked_fill(~visited, -torch.inf)
        begun = so_far.isfinite().any(1)
        assert torch.allclose(state.m[begun] + state.l[begun].log(), so_far[begun].logsumexp(1), atol=1e-5)
        assert (state.l[~begun] == 0).all() and (state.m[~begun] == -torch.inf).all()


def test_tiles_that_the_mask_hides_change_nothing_and_cover_no_pair_that_is_seen():
    p = problem(16, 24, 8, 4, 4)
    every = explorer.states(p, True)
    hidden = [i for i, tile in enumerate(p.tiles) if explorer.is_hidden(p, tile)]
    assert len(hidden) == 6
    for i in hidden:
        assert torch.equal(every[i].acc, every[i + 1].acc) and not causal_mask(16, 24)[p.tiles[i]].any()
        assert explorer.SKIPPED in explorer._cells(p, i + 1, True)[p.tiles[i][0].start]


def test_the_picture_shows_the_tile_at_work_and_what_is_left_of_the_others():
    p = problem(16, 24, 8, 4, 4)
    cells = explorer._cells(p, 8, True)
    kinds = [kind for row in cells for kind in row]
    assert kinds.count(explorer.NOW) == 16 and kinds.count(explorer.GONE) == 3 * 16 + 10
    assert "Tile 8 of 24 (queries 4-7, keys 4-7)" in explorer.tile_figure(p, 8).layout.title.text
    assert "nothing is kept" in explorer.tile_figure(p, 0).layout.title.text
    assert "skipped" in explorer.tile_figure(p, 6).layout.title.text


def test_slider_and_box_move_the_picture():
    p = problem(16, 24, 8, 4, 4)
    panel = Panel(
        lambda tile, causal: explorer.tile_figure(p, tile, causal), {"tile": (0, 24), "causal": True}
    )
    panel.widget()
    shown = [panel.live.figure]
    for name, value in [("tile", 7), ("tile", 24), ("causal", False)]:
        panel.controls[name].value = value
        shown.append(panel.live.figure)
        assert panel.message.value == "" and shown[-1] != shown[-2]


@pytest.mark.parametrize(
    "wrong", [(5, 3, 4, 2, 2), (4, 4, 4, 0, 2)], ids=["more queries than keys", "no tile"]
)
def test_what_is_no_problem_is_refused_in_words(wrong):
    with pytest.raises(ValueError, match=r"T <= S|at least one row"):
        problem(*wrong)


def test_a_step_beyond_the_last_tile_is_refused():
    with pytest.raises(ValueError, match="24 tiles"):
        explorer.tile_figure(problem(16, 24, 8, 4, 4), 25)
