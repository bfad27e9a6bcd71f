"""The tile and wave visualiser shows what `roofline.tiles` counts."""

import collections

import ipywidgets
import pytest

from minitransformer.course import figures
from minitransformer.course.explorers import tile_pictures, tile_waves
from minitransformer.roofline.tiles import matmul_efficiency, num_tiles, tile_grid, visiting_order

SHAPES = [(4225, 4096, (128, 256), 132, 8), (100, 70, (64, 64), 3, 2), (1, 1, (16, 128), 1, 1)]


@pytest.mark.parametrize("case", SHAPES, ids=str)
def test_every_tile_has_the_colour_of_its_wave(case):
    M, N, tile, num_sms, group = case
    rows, columns = tile_grid(M, N, tile)
    drawn = tile_pictures.tile_map(M, N, tile, num_sms, group)
    waves = len(tile_pictures.WAVE_COLOURS)
    for program, (row, column) in enumerate(visiting_order(rows, columns, group)):
        assert drawn.z[row][column] == 1 + program // num_sms % waves
    assert list(drawn.y) == [(row + 0.5) * tile[0] for row in range(rows)]


@pytest.mark.parametrize("case", SHAPES, ids=str)
def test_busy_places_of_the_sms_are_as_many_as_tiles(case):
    M, N, tile, num_sms, _ = case
    programs = num_tiles(M, N, tile)
    count = collections.Counter(kind > 0 for row in tile_pictures.sm_map(programs, num_sms).z for kind in row)
    assert count[True] == programs
    assert count[False] == -programs % num_sms


def test_the_title_tells_tiles_waves_and_both_shares():
    title = tile_waves.verdict(4225, 4096, (128, 256), 132)
    assert title == "34 x 16 = 544 tiles in 5 waves: 97.1% (tiles) x 82.4% (waves) = 80.0%"
    assert "1 wave:" in tile_waves.verdict(1, 1, (16, 128), 132)


def test_the_sawtooth_falls_right_after_a_full_wave():
    fig = tile_waves.tile_figure(4224, 4096, (128, 256), 132)
    line = next(trace for trace in fig.data if trace.type == "scatter" and trace.mode == "lines")
    at = dict(zip(line.x, line.y, strict=True))
    assert at[4224] == 1
    assert at[4225] == matmul_efficiency(4225, 4096, (128, 256), 132) < 0.81


def test_figures_of_two_settings_have_the_same_traces_so_that_they_move_in_place():
    kinds = [[trace.type for trace in tile_waves.tile_figure(*case).data] for case in SHAPES]
    assert kinds[0] == kinds[1] == kinds[2]


def test_a_sawtooth_figure_puts_the_first_tile_in_front():
    fig = tile_pictures.sawtooth_figure(range(1, 500), 256, [(128, 256), (64, 64)], 4)
    assert [trace.name for trace in fig.data] == ["64 x 64", "128 x 256"]
    assert "N = 256, 4 SMs" in fig.layout.title.text


def test_every_slider_moves_the_figure(monkeypatch):
    made = []
    monkeypatch.delenv("COURSE_STATIC", raising=False)
    monkeypatch.setattr(figures, "display", made.append)
    monkeypatch.setattr(figures, "Panel", lambda *args: made.append(figures_panel(*args)) or made[-1])
    tile_waves.tile_waves()
    panel = next(one for one in made if hasattr(one, "controls"))
    for name, control in panel.controls.items():
        before = panel.figure.to_dict()
        if isinstance(control, ipywidgets.Dropdown):
            control.index = (control.index + 1) % len(control.options)
        else:
            control.value -= 1
        assert panel.figure.to_dict() != before and panel.message.value == "", name


figures_panel = figures.Panel


# --- pictures -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [1, 3, 8])
def test_the_order_picture_marks_a_wave_and_the_strips_that_it_needs(group):
    rows, columns, at_once = 7, 9, 16
    wave = visiting_order(rows, columns, group)[:at_once]
    fig = tile_pictures.order_figure(rows, columns, [group], at_once)
    cells = next(trace for trace in fig.data if trace.type == "heatmap").text
    drawn = {
        (row - 2, column - 2)
        for row, kinds in enumerate(cells)
        for column, kind in enumerate(kinds)
        if kind == tile_pictures.RUNS
    }
    assert drawn == set(wave)
    strips = sum(kind == tile_pictures.FETCHED for kinds in cells for kind in kinds)
    needed = len({row for row, _ in wave}), len({column for _, column in wave})
    assert strips == sum(needed)
    assert fig.layout.annotations[0].text.endswith(f"{needed[0]} + {needed[1]} strips")


def test_steps_are_drawn_in_the_unit_that_most_points_imply():
    fig = tile_pictures.steps_figure([32, 33, 64], [1, 2, 2], [0.5, 1.2, 1.0], "steps")
    assert list(fig.data[0].y) == [1, 2, 2] and list(fig.data[1].y) == pytest.approx([1, 2.4, 2])


def test_a_record_that_follows_the_formula_lies_on_the_prediction():
    rows = [
        {"M": M, "N": 4096, "K": 4096, "block_m": 128, "block_n": 256, "sms": 132}
        | {"flops": 7e14 * matmul_efficiency(M, 4096, (128, 256), 132), "library_flops": 6e14}
        for M in (3072, 3968, 4224, 4225)
    ]
    predicted, measured, library = tile_pictures.waves_figure(rows, "made up").data
    assert list(predicted.y) == pytest.approx(list(measured.y)) and list(library.y) == [6e14] * 4
    assert list(measured.x) == [3072, 3968, 4224, 4225]
