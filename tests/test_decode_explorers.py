"""Lesson 08's interactive parts: the model of the number of splits, and the picture of a block table."""

import math
from dataclasses import replace

import pytest
import torch

from minitransformer.course.explorers import block_table, num_splits
from minitransformer.course.explorers.num_splits import DecodeShape, predict_decode, shape_of
from minitransformer.kernels.splits import MOST_SPLITS, choose_num_splits
from minitransformer.roofline import DEVICES
from minitransformer.roofline.records import device_fields
from minitransformer.roofline.tiles import SMS

H100 = DEVICES["H100"]
ONE = shape_of("Llama-3-8B", batch=1, context=65_536)


# --- the number of splits -------------------------------------------------------------------------------


def test_a_single_split_reads_at_the_share_of_its_programs():
    found = predict_decode(ONE, H100, 132, 1)
    assert found.merging == 0
    assert found.share == pytest.approx(8 / 132)
    assert found.seconds == pytest.approx(ONE.cache_bytes / H100.bandwidth * 132 / 8)


def test_one_split_more_than_a_full_wave_costs_a_wave():
    full, more = (predict_decode(ONE, H100, 132, n) for n in (16, 17))
    assert (full.occupancy.waves, more.occupancy.waves) == (1, 2)
    assert more.reading == pytest.approx(2 * math.ceil(1024 / 17) / 64 * full.reading)


def test_the_prefill_kernel_reads_a_head_once_for_each_of_its_queries():
    found = num_splits.predict_prefill_kernel(ONE, H100, 132)
    assert found.occupancy.busy == pytest.approx(32 / 132)
    assert found.share == pytest.approx(8 / 132)  # four programs ask for the same keys


@pytest.mark.parametrize("context", [1, 63, 64, 65, 5000])
@pytest.mark.parametrize("batch", [1, 7, 200])
def test_no_choice_uses_more_than_the_bandwidth_and_none_beats_the_best(batch, context):
    shape = DecodeShape(batch, 16, 4, 64, context)
    best = predict_decode(shape, H100, 132, num_splits.best_splits(shape, H100, 132))
    for n in (1, 2, 3, 16, MOST_SPLITS):
        found = predict_decode(shape, H100, 132, n)
        assert 0 < found.share <= 1
        assert n > shape.blocks or found.seconds >= best.seconds


def test_what_a_merge_costs_are_its_bytes_and_a_second_kernel():
    free = predict_decode(ONE, H100, 132, 4, second_kernel=0.0)
    assert free.merging * H100.bandwidth == pytest.approx(2 * 32 * 4 * (128 + 1) * 4)
    assert predict_decode(ONE, H100, 132, 4).merging == pytest.approx(free.merging + num_splits.SECOND_KERNEL)


def test_the_figure_shows_every_program_once_and_marks_both_choices():
    fig = num_splits.splits_figure(ONE, H100, 132, 17)
    traces = {trace.name: trace for trace in fig.data}
    assert sum(traces["reading"].y) == 8 * 17
    assert sum(traces["reading"].y) + sum(traces["idle"].y) == 2 * 132
    assert list(traces["here"].x) == [17]
    assert list(traces["the package's choice"].x) == [choose_num_splits(8, 132, 1024)]
    assert len(traces["share of bandwidth"].x) == MOST_SPLITS


def test_more_splits_than_blocks_are_drawn_as_many_as_there_are_blocks():
    short = shape_of("Llama-3-8B", batch=1, context=128)
    assert num_splits.splits_figure(short, H100, 132, 100).layout.title.text.startswith("16 programs")


def test_the_explorer_follows_its_controls(panels):
    num_splits.splits_explorer(splits=1)
    (panel,) = panels
    before = panel.figure.layout.title.text
    panel.controls["splits"].value = 16
    assert panel.figure.layout.title.text != before
    panel.controls["device"].value = "A100"
    assert f"on {SMS['A100']} SMs" in panel.figure.layout.title.text


@pytest.mark.parametrize("wrong", [{"models": ["GPT-9"]}, {"device": "abacus"}])
def test_an_unknown_name_is_refused_in_words(wrong):
    with pytest.raises(ValueError, match="is not known here"):
        num_splits.splits_explorer(**wrong)


def test_the_map_writes_every_gain_into_its_place():
    fig = num_splits.gain_map([[16.0, 1.0], [1.6, 1.0]], [1, 16], [4096, 64], "map")
    assert [list(row) for row in fig.data[0].text] == [["16x", "1x"], ["1.6x", "1x"]]
    assert list(fig.data[0].x) == ["1", "16"] and list(fig.data[0].y) == ["4,096", "64"]


def test_a_record_stands_beside_the_model_of_its_own_gpu():
    limits = device_fields(replace(H100, name="Imaginary GPU", bandwidth=4e12))
    seconds = {1: ONE.cache_bytes / 4e12 / 0.05, 16: ONE.cache_bytes / 4e12 / 0.75}  # 5% and 75%
    rows = [
        {"batch": 1, "context": 65_536, "places": 100, "splits": n, "measured_s": took}
        for n, took in seconds.items()
    ]
    record = {
        "device": "Imaginary GPU",
        "date": "2026-01-02",
        "limits": limits,
        "items": {"num_splits": rows},
    }
    traces = {trace.name: trace for trace in num_splits.record_figure(record).data}
    measured, predicted = traces["1 x 65,536, measured"], traces["1 x 65,536, predicted"]
    assert list(measured.x) == list(predicted.x) == [1, 16]
    assert list(measured.y) == pytest.approx([0.05, 0.75])
    assert predicted.y[0] == pytest.approx(8 / 100)


# --- the block table ------------------------------------------------------------------------------------


def test_blocks_are_rounded_up_and_waste_is_the_rest_of_the_last():
    assert block_table.blocks_needed([70, 33, 16, 0], 16) == [5, 3, 1, 0]
    assert block_table.wasted_slots([70, 33, 16, 0], 16) == 10 + 15
    assert block_table.wasted_slots([70, 33], 1) == 0


def test_no_two_sequences_share_a_block():
    lengths = [70, 33, 18, 5]
    table = block_table.scattered_table(lengths, 16, 24)
    used = [
        int(b) for row, n in zip(table, block_table.blocks_needed(lengths, 16), strict=True) for b in row[:n]
    ]
    assert table.dtype == torch.int32 and table.shape == (4, 5)
    assert len(set(used)) == len(used) == 11 and all(0 <= b < 24 for b in used)


def test_a_memory_too_small_is_refused_with_the_numbers():
    with pytest.raises(ValueError, match="11 blocks of 16 tokens are needed, there are 10"):
        block_table.scattered_table([70, 33, 18, 5], 16, 10)


def test_the_picture_shows_each_block_above_and_in_memory():
    lengths = [20, 5]
    table = block_table.scattered_table(lengths, 8, 6)
    fig = block_table.block_table_figure(lengths, table, 8, 6)
    texts = [a.text for a in fig.layout.annotations]
    assert texts.count("sequence 1") == 1 and texts.count("memory") == 1
    for block in range(6):
        assert texts.count(str(block)) == (2 if block in table[0].tolist() + table[1, :1].tolist() else 1)
    assert "7 of 32 slots hold nothing" in fig.layout.title.text


def test_the_slider_changes_the_block_size(panels):
    block_table.block_table_picture([70, 33, 18, 5])
    (panel,) = panels
    panel.controls["block_size"].value = 4
    assert panel.figure.layout.title.text.startswith("blocks of 4:")
