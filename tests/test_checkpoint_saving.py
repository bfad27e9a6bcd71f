"""Saving never costs the checkpoint that was there."""

import os
from pathlib import Path

import pytest
from small_checkpoints import MODEL, WEIGHTS, files, same_weights, saved, shard, small_tokenizer
from small_models import small_model

from minitransformer import load_pretrained, save_pretrained


@pytest.fixture
def folder(tmp_path) -> Path:
    return saved(tmp_path)


def disk_full(*args, **kwargs):
    raise OSError(28, "No space left on device")


def save_over(folder: Path):
    save_pretrained(small_model(seed=5, hidden_size=64), folder, small_tokenizer())


@pytest.mark.parametrize(
    "fault", ["checkpoint.save_file", "tokenizer.Tokenizer.save", "checkpoint.json.dumps"]
)
def test_a_failing_write_leaves_the_old_checkpoint_whole(folder, fault, monkeypatch):
    before = files(folder)
    monkeypatch.setattr(f"minitransformer.{fault}", disk_full)
    with pytest.raises(OSError, match="No space left"):
        save_over(folder)
    assert files(folder) == before


@pytest.mark.parametrize("failing", range(8))
def test_a_failing_move_leaves_the_old_checkpoint_whole(folder, failing, monkeypatch):
    """Two old files step aside, then five new ones take their places: whichever fails, all is undone."""
    before, moves, replace = files(folder), [], os.replace

    def move(source, target):
        moves.append(target)
        return disk_full() if len(moves) - 1 == failing else replace(source, target)

    monkeypatch.setattr(os, "replace", move)
    if failing == 7:  # there are no more than seven
        save_over(folder)
        assert len(moves) == 7 and len(files(folder)) == 5
    else:
        with pytest.raises(OSError, match="No space left"):
            save_over(folder)
        assert files(folder) == before


def test_saving_over_a_checkpoint_replaces_it_and_only_it(folder):
    shard(folder)
    (folder / "notes.txt").write_text("mine")
    other = small_model(seed=5, hidden_size=64)
    save_pretrained(other, folder)
    assert sorted(files(folder)) == ["config.json", WEIGHTS, "notes.txt"]
    assert same_weights(load_pretrained(folder)[0], other)


def test_a_model_can_be_saved_where_it_was_loaded_from(folder):
    loaded = load_pretrained(folder)[0]
    save_pretrained(loaded, folder)
    assert same_weights(load_pretrained(folder)[0], MODEL)


def test_saving_to_a_file_is_refused(folder):
    with pytest.raises(ValueError, match="is a file: a checkpoint is a folder"):
        save_pretrained(MODEL, folder / WEIGHTS)


def test_a_mixture_of_no_family_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="no public architecture"):
        save_pretrained(small_model(qk_norm=True, attention_bias=True), tmp_path)
    assert files(tmp_path) == {}


def test_weights_are_as_readable_as_the_other_files(tmp_path):
    save_pretrained(small_model(), tmp_path)
    modes = {file.stat().st_mode for file in tmp_path.iterdir()}
    assert len(modes) == 1
