"""Checkpoint folders for tests: written whole, then damaged in one way or another."""

import json
from pathlib import Path

import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file
from small_models import small_model
from tokenizers import decoders, models, pre_tokenizers

from minitransformer import load_pretrained, save_pretrained
from minitransformer.tokenizer import Tokenizer

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def small_tokenizer(**special) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", "<|end|>", *alphabet])}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.add_special_tokens(["<s>", "</s>", "<|end|>"])
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(backend, **{"bos_token": "<s>", "eos_token": "</s>"} | special)


MODEL = small_model()


def saved(tmp_path: Path) -> Path:
    """A folder with MODEL in it."""
    save_pretrained(MODEL, tmp_path / "saved")
    return tmp_path / "saved"


def edit_weights(folder: Path, edit):
    tensors = load_file(folder / WEIGHTS)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS)


def edit_config(folder: Path, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def shard(folder: Path, parts: int = 3):
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    weight_map = {}
    for part in range(parts):
        file = f"model-{part + 1:05}-of-{parts:05}.safetensors"
        names = sorted(tensors)[part::parts]
        save_file({n: tensors[n] for n in names}, folder / file)
        weight_map |= dict.fromkeys(names, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return weight_map


def same_weights(one, other) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) and a[n].dtype == b[n].dtype for n in a)


def refused(folder, *words, error=ValueError):
    with pytest.raises(error) as caught:
        load_pretrained(folder)
    for word in words:
        assert word in str(caught.value)


def files(folder: Path) -> dict[str, bytes]:
    """Everything in a folder, by its path from there."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
