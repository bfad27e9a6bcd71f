"""Checkpoints: what is read, and what is refused with a reason."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_checkpoints import (
    EMBEDDING,
    HEAD,
    INDEX,
    MODEL,
    WEIGHTS,
    edit_config,
    edit_weights,
    refused,
    same_weights,
    saved,
    shard,
)
from small_models import LLAMA3_SCALING, random_ids, small_model

from minitransformer import checkpoint, load_pretrained, save_pretrained


@pytest.fixture
def folder(tmp_path) -> Path:
    return saved(tmp_path)


# --- load and save -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True, "rope_scaling": LLAMA3_SCALING, "rope_theta": 5e5},
        {"attention_bias": True},
        {"attention_bias": True, "attention_out_bias": True},
        {"qk_norm": True, "head_dim": 20, "num_key_value_heads": 1},
        {"sliding_window": 8},
    ],
)
def test_save_load_save_is_a_round_trip(changes, dtype, tmp_path):
    model = small_model(**changes).to(dtype)
    save_pretrained(model, tmp_path / "a")
    loaded, tokenizer = load_pretrained(tmp_path / "a")
    assert tokenizer is None and loaded.config == model.config and not loaded.training
    assert same_weights(loaded, model)
    assert torch.equal(loaded(random_ids(2, 9)), model(random_ids(2, 9)))
    save_pretrained(loaded, tmp_path / "b")
    for name in ("config.json", WEIGHTS):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_tied_weights_are_stored_once(tmp_path):
    save_pretrained(small_model(tie_word_embeddings=True), tmp_path)
    assert HEAD not in load_file(tmp_path / WEIGHTS)


def test_dtype_is_the_checkpoints_own_unless_asked(folder):
    model = small_model().to(torch.bfloat16)
    save_pretrained(model, folder)
    assert load_pretrained(folder)[0].dtype == torch.bfloat16
    wide = load_pretrained(folder, dtype=torch.float32)[0]
    assert {p.dtype for p in wide.parameters()} == {torch.float32}
    assert torch.equal(wide.norm.weight, model.norm.weight.float())


def test_mixed_dtypes_load_as_the_widest(folder):
    edit_weights(folder, lambda t: t.update({EMBEDDING: t[EMBEDDING].bfloat16()}))
    loaded = load_pretrained(folder)[0]
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.embed_tokens.weight, MODEL.embed_tokens.weight.bfloat16().float())


def test_spare_tensors_do_not_decide_the_dtype(folder):
    save_pretrained(small_model().to(torch.bfloat16), folder)
    edit_weights(folder, lambda t: t.update({"model.rotary_emb.inv_freq": torch.rand(4)}))
    assert load_pretrained(folder)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, "bfloat16"])
def test_dtypes_that_weights_cannot_have_are_refused(folder, dtype):
    with pytest.raises(ValueError, match=r"weights are one of .*torch\.bfloat16"):
        load_pretrained(folder, dtype=dtype)


def test_attention_is_passed_on(folder):
    with pytest.raises(ValueError, match="attention='flash'"):
        load_pretrained(folder, attention="flash")


def test_shards_load_as_one(folder):
    shard(folder)
    assert same_weights(load_pretrained(folder)[0], MODEL)


def test_loaded_weights_do_not_hang_on_the_file(folder):
    loaded = load_pretrained(folder)[0]
    (folder / WEIGHTS).write_bytes(b"\0" * (folder / WEIGHTS).stat().st_size)
    assert same_weights(loaded, MODEL)


def test_loading_holds_the_model_once(tmp_path):
    """Peak memory of a process that loads 40 MB of weights: those, and less than half as much again."""
    save_pretrained(small_model(hidden_size=512, intermediate_size=1024, num_hidden_layers=4), tmp_path)
    program = """
import resource, sys
from minitransformer import load_pretrained
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
model, _ = load_pretrained(sys.argv[1])
print(peak() - before, sum(p.nbytes for p in model.parameters()))
"""
    out = subprocess.check_output([sys.executable, "-c", program, str(tmp_path)], text=True)
    grown, weights = map(int, out.split())
    assert weights > 35e6 and grown < 1.5 * weights


def test_weights_name_no_metadata_but_their_format(folder):
    with safe_open(folder / WEIGHTS, "pt") as file:
        assert file.metadata() == {"format": "pt"}


# --- what is refused ---------------------------------------------------------------------------------


def test_a_missing_tensor_is_named(folder):
    edit_weights(folder, lambda t: t.pop("model.layers.1.mlp.up_proj.weight"))
    refused(folder, "missing tensors: model.layers.1.mlp.up_proj.weight", str(folder))


def test_a_missing_head_of_an_untied_model_is_named(folder):
    edit_weights(folder, lambda t: t.pop(HEAD))
    refused(folder, f"missing tensors: {HEAD}")


def test_a_spare_tensor_is_named(folder):
    edit_weights(folder, lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(32)}))
    refused(folder, "spare tensors: model.layers.0.self_attn.q_proj.bias")


def test_a_wrong_shape_is_named_with_both_shapes(folder):
    edit_weights(folder, lambda t: t.update({"model.norm.weight": torch.ones(31)}))
    refused(folder, "model.norm.weight is [31] instead of [32]")


def test_a_turned_matrix_is_refused(folder):
    name = "model.layers.0.mlp.gate_proj.weight"
    edit_weights(folder, lambda t: t.update({name: t[name].T.contiguous()}))
    refused(folder, f"{name} is [32, 48] instead of [48, 32]")


def test_all_problems_are_told_at_once_and_long_lists_are_cut(folder):
    edit_config(folder, num_hidden_layers=3)
    edit_weights(folder, lambda t: t.update({"stray": torch.zeros(1)}))
    refused(folder, "missing tensors: model.layers.2.", " and 4 more", "spare tensors: stray")


def test_numbers_that_are_no_weights_are_refused(folder):
    edit_weights(folder, lambda t: t.update({"model.norm.weight": torch.ones(32, dtype=torch.int8)}))
    refused(folder, "model.norm.weight (I8)", "F32")


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_file_is_named(folder, keep):
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:keep])
    refused(folder, str(folder / WEIGHTS), "no whole safetensors file")


def test_pickles_are_refused_with_the_reason_and_not_opened(folder, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "exploded"),))

    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    refused(folder, "pytorch_model.bin", "can run any program", "safetensors")
    refused(folder / "pytorch_model.bin", "pytorch_model.bin", "can run any program")
    assert not (tmp_path / "exploded").exists()


def test_a_pickle_beside_safetensors_is_left_alone(folder):
    (folder / "pytorch_model.bin").write_bytes(b"anything")
    assert same_weights(load_pretrained(folder)[0], MODEL)


def test_a_folder_without_weights_or_config_says_so(folder):
    (folder / WEIGHTS).unlink()
    refused(folder, "neither model.safetensors nor", error=FileNotFoundError)
    (folder / "config.json").unlink()
    refused(folder, "no config.json", error=FileNotFoundError)


def test_an_unknown_architecture_is_named(folder):
    edit_config(folder, architectures=["RwkvForCausalLM"])
    refused(folder, "unknown architecture RwkvForCausalLM")


def test_missing_shards_are_named(folder):
    shard(folder)
    (folder / "model-00002-of-00003.safetensors").unlink()
    refused(folder, "lacks model-00002-of-00003.safetensors", error=FileNotFoundError)


@pytest.mark.parametrize("file", ["../outside.safetensors", "/etc/passwd", "a/../../b", "..", "", 7])
def test_an_index_that_names_files_elsewhere_is_refused(folder, file):
    weight_map = shard(folder)
    save_file({EMBEDDING: torch.zeros(97, 32)}, folder.parent / "outside.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map | {EMBEDDING: file}}))
    refused(folder, INDEX, "its own folder")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}', "\x00"])
def test_a_broken_index_is_refused(folder, text):
    shard(folder)
    (folder / INDEX).write_text(text)
    refused(folder, INDEX)


def test_a_shard_that_holds_other_tensors_than_promised_is_refused(folder):
    weight_map = shard(folder)
    other = next(file for file in weight_map.values() if file != weight_map[EMBEDDING])
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map | {EMBEDDING: other}}))
    refused(folder, "do not agree about model.embed_tokens.weight")


@pytest.mark.parametrize("where", ["nowhere", "a/b/c", "./no/where", "~none", ""])
def test_a_path_that_does_not_exist_is_named(where, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint|no config"):
        load_pretrained(where)


def test_spare_tensors_that_carry_nothing_are_accepted(tmp_path):
    model = small_model(tie_word_embeddings=True)
    save_pretrained(model, tmp_path)

    def add(tensors):
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.rand(4)
        tensors[HEAD] = tensors[EMBEDDING].clone()

    edit_weights(tmp_path, add)
    assert same_weights(load_pretrained(tmp_path)[0], model)


def test_a_stored_head_that_differs_from_a_tied_embedding_is_refused(tmp_path):
    save_pretrained(small_model(tie_word_embeddings=True), tmp_path)
    edit_weights(tmp_path, lambda t: t.update({HEAD: t[EMBEDDING] + 1}))
    refused(tmp_path, HEAD, EMBEDDING, "differ")


def test_everything_is_checked_before_a_weight_is_read(folder, monkeypatch):
    edit_weights(folder, lambda t: t.pop("model.norm.weight"))
    monkeypatch.setattr(checkpoint, "read_tensor", lambda *a: pytest.fail("read a weight"))
    refused(folder, "model.norm.weight")
