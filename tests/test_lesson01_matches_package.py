"""Lesson 01's cells and the package do the same: the code is taken from the notebook as it stands."""

import ast
import math

import nbformat
import pytest
import torch
import torch.nn.functional as F
from jupyter_lab import ROOT
from small_models import small_config, small_model
from torch import nn

from minitransformer import load_pretrained
from minitransformer.layers import attention, norm, rotary

LESSON = ROOT / "lessons" / "01_attention_in_context.ipynb"
WHAT_CELLS_IMPORT = {"F": F, "math": math, "nn": nn, "torch": torch}
SHAPES = [
    {},
    {"num_key_value_heads": 1},
    {"num_key_value_heads": 4, "head_dim": 6},
    {"tie_word_embeddings": True, "rope_theta": 100.0},
    {"num_hidden_layers": 3, "hidden_size": 36, "num_attention_heads": 6, "num_key_value_heads": 3},
]


@pytest.fixture(scope="module")
def lesson() -> dict:
    """What the lesson's cells tagged "build" define."""
    names = dict(WHAT_CELLS_IMPORT)
    for cell in nbformat.read(LESSON, as_version=4).cells:
        if "build" in cell.metadata.get("tags", []):
            assert all(isinstance(n, (ast.ClassDef, ast.FunctionDef)) for n in ast.parse(cell.source).body)
            exec(compile(cell.source, f"lesson 01, cell {cell.id}", "exec"), names)
    return names


def test_the_lesson_builds_every_part_under_the_packages_name(lesson):
    parts = {"RMSNorm", "RotaryEmbedding", "apply_rope", "causal_mask", "reference_attention"}
    parts |= {"Attention", "SwiGLU", "TransformerLayer", "Transformer"}
    assert parts <= set(lesson)


@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_the_lessons_transformer_gives_the_packages_logits(lesson, changes):
    package = small_model(seed=5, **changes)
    mine = lesson["Transformer"](package.config)
    mine.load_state_dict(package.state_dict())
    ids = torch.randint(package.config.vocab_size, (3, 17))
    with torch.no_grad():
        assert torch.allclose(mine(ids), package(ids), atol=1e-4, rtol=1e-4)


def test_the_lessons_transformer_speaks_with_the_bundled_weights(lesson):
    package, tokenizer = load_pretrained()
    mine = lesson["Transformer"](package.config)
    mine.load_state_dict(package.state_dict())
    ids = torch.tensor([tokenizer.encode("List: Ada lamp, Ben ball, Cleo hat. Ask: Ben")])
    with torch.no_grad():
        ours, theirs = mine(ids), package(ids)
    assert (ours - theirs).norm() / theirs.norm() < 1e-5
    assert torch.equal(ours.argmax(-1), theirs.argmax(-1))


@pytest.mark.parametrize(("T", "S"), [(1, 1), (5, 5), (1, 9), (4, 7)])
def test_masks_agree(lesson, T, S):
    assert torch.equal(lesson["causal_mask"](T, S), attention.causal_mask(T, S))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("H, G, T, S", [(4, 2, 5, 5), (6, 1, 1, 8), (3, 3, 4, 9)])
def test_attention_agrees(lesson, H, G, T, S, dtype):
    q, k, v = (torch.randn(2, n, size, 8, dtype=dtype) for n, size in ((H, T), (G, S), (G, S)))
    assert torch.equal(lesson["reference_attention"](q, k, v), attention.reference_attention(q, k, v))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_norms_agree(lesson, dtype):
    x = 300 * torch.randn(3, 5, 16, dtype=dtype)
    mine, packaged = lesson["RMSNorm"](16, 1e-5), norm.RMSNorm(16, 1e-5)
    assert torch.equal(mine(x), packaged(x))


def test_rotations_agree(lesson):
    config = small_config(head_dim=12, rope_theta=5000.0)
    positions = torch.tensor([0, 3, 77, 5000])
    mine, packaged = lesson["RotaryEmbedding"](config)(positions), rotary.RotaryEmbedding(config)(positions)
    assert all(torch.equal(a, b) for a, b in zip(mine, packaged, strict=True))
    x = torch.randn(2, 3, 4, 12)
    assert torch.equal(lesson["apply_rope"](x, *mine), rotary.apply_rope(x, *packaged))
