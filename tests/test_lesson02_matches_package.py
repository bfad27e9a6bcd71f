"""Lesson 02's cells and the package do the same: the classes are taken from the notebook as it stands."""

import ast
import builtins

import nbformat
import pytest
import torch
from jupyter_lab import ROOT
from small_models import small_config, small_model

from minitransformer import ModelConfig, cache, generate
from minitransformer.course.explorers import kv_calculator, kv_pictures
from minitransformer.layers.attention import causal_mask
from minitransformer.layers.rotary import RotaryEmbedding, apply_rope
from minitransformer.roofline import DEVICES, MODELS, kv_bytes_per_token, max_batch

LESSON = ROOT / "lessons" / "02_kv_cache.ipynb"
WHAT_CELLS_IMPORT = {
    "torch": torch,
    "ModelConfig": ModelConfig,
    "RotaryEmbedding": RotaryEmbedding,
    "apply_rope": apply_rope,
    "causal_mask": causal_mask,
}
SHAPES = [{}, {"num_key_value_heads": 1}, {"num_key_value_heads": 4, "head_dim": 6}, {"num_hidden_layers": 5}]


@pytest.fixture(scope="module")
def lesson() -> dict:
    """The functions and classes that the lesson defines; nothing else of it is run."""
    names = dict(WHAT_CELLS_IMPORT)
    for cell in nbformat.read(LESSON, as_version=4).cells:
        if cell.cell_type == "code":
            tree = ast.parse(cell.source)
            tree.body = [node for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))]
            exec(compile(tree, f"lesson 02, cell {cell.id}", "exec"), names)
    return names


@pytest.mark.parametrize("changes", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_caches_hold_and_return_the_same(lesson, changes, dtype):
    config = small_config(**changes)
    caches = [made(config, 3, 17, dtype) for made in (lesson["KVCache"], cache.KVCache)]
    assert caches[0].nbytes == caches[1].nbytes == 17 * 3 * kv_bytes_per_token(config, dtype)
    for count in (5, 1, 1, 7, 3):
        for layer in range(config.num_hidden_layers):
            size = (3, config.num_key_value_heads, count, config.head_dim)
            k, v = torch.randn(size, dtype=dtype), torch.randn(size, dtype=dtype)
            mine, packaged = (c.update(layer, k, v) for c in caches)
            assert all(torch.equal(a, b) for a, b in zip(mine, packaged, strict=True))
        for c in caches:
            c.advance(count)
        assert caches[0].seq_len == caches[1].seq_len
    for c in caches:
        c.reset()
    assert caches[0].seq_len == caches[1].seq_len == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.require_room(2, 5),
        lambda c: c.require_room(2, 6),
        lambda c: c.require_room(3, 1),
        lambda c: c.require_model(small_config(), torch.float32),
        lambda c: c.require_model(small_config(), torch.float16),
        lambda c: c.require_model(small_config(num_hidden_layers=3), torch.float32),
    ],
)
def test_both_caches_refuse_the_same(lesson, call):
    refused = []
    for made in (lesson["KVCache"], cache.KVCache):
        filled = made(small_config(), 2, 8)
        filled.advance(3)
        try:
            refused.append(call(filled))
        except ValueError as error:
            refused.append(type(error).__name__)
    assert refused[0] == refused[1]


@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_the_lessons_generation_gives_the_packages_tokens(lesson, changes):
    model = small_model(**changes)
    ids = torch.randint(model.config.vocab_size, (2, 9))
    wanted = generate(model, ids, 12)
    assert torch.equal(lesson["generate_without_cache"](model, ids, 12), wanted)
    assert torch.equal(lesson["generate_with_cache"](model, ids, 12), wanted)


def test_what_the_lessons_cache_defines_is_in_the_package_under_the_same_names(lesson):
    mine = {name for name in vars(lesson["KVCache"]) if not name.startswith("_")}
    assert mine <= set(dir(cache.KVCache))
    assert issubclass(lesson["CacheFull"], builtins.ValueError)


@pytest.mark.parametrize("pieces", [[9], [1] * 9, [4, 1, 1, 3], [8, 1]], ids=str)
def test_latent_attention_with_its_cache_equals_one_pass(lesson, pieces):
    torch.manual_seed(0)
    attention = lesson["LatentAttention"](1, 48, 3, 8, 20, 6).double()
    x, kept, out = torch.randn(2, 9, 48).double(), lesson["LatentCache"](2, 2, 11, 20, 6, torch.float64), []
    with torch.no_grad():
        for piece in x.split(pieces, dim=1):
            out.append(attention(piece, kept))
            kept.advance(piece.shape[1])
        torch.testing.assert_close(torch.cat(out, dim=1), attention(x))


def test_latent_attention_is_multi_head_attention_over_keys_made_from_the_latent(lesson):
    """Written out head by head in float64, from the formulas of arXiv 2405.04434, section 2.1."""
    torch.manual_seed(1)
    H, D, C, R, T = 3, 8, 20, 6, 7
    attention, x = lesson["LatentAttention"](0, 48, H, D, C, R).double(), torch.randn(1, T, 48).double()
    with torch.no_grad():
        came, kept = attention(x)[0], x[0] @ attention.down.weight.T
        cos, sin = (a.double() for a in attention.rotary(torch.arange(T)))
        q, k_rope = (x[0] @ attention.q_proj.weight.T).view(T, H, D + R), apply_rope(kept[:, C:], cos, sin)
        heads = []
        for h in range(H):
            rows = slice(h * D, (h + 1) * D)
            k, v = (kept[:, :C] @ up.weight[rows].T for up in (attention.up_k, attention.up_v))
            scores = q[:, h, :D] @ k.T + apply_rope(q[:, h, D:], cos, sin) @ k_rope.T
            scores = (scores / (D + R) ** 0.5).masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf)
            heads.append(scores.softmax(-1) @ v)
        torch.testing.assert_close(came, torch.cat(heads, dim=1) @ attention.o_proj.weight.T)


# --- the pictures and the calculator ------------------------------------------------------------------


@pytest.mark.parametrize("layout", kv_pictures.LAYOUTS)
def test_the_layout_picture_says_what_a_step_moves(layout):
    held, slots = 20, 48
    kept = cache.KVCache(small_config(), 2, slots)
    fig = kv_pictures.layout_figure(kept, held, layout)
    cells = [kind for row in fig.data[0].text for kind in row]
    count = {use: sum(f": {use}," in cell for cell in cells) for use in ("written", "reserved, not read")}
    places = kept.k.numel() // (slots * kept.k.shape[4])
    assert count == {"written": places, "reserved, not read": places * (slots - held - 1)}
    assert "1 piece a row" in fig.layout.xaxis.title.text or layout != kv_pictures.LAYOUTS[0]
    with pytest.raises(ValueError, match="no slot"):
        kv_pictures.layout_figure(kept, slots)


def test_the_recomputation_picture_counts_each_token():
    fig = kv_pictures.recompute_map(prompt=5, new=7)
    titles = [note.text for note in fig.layout.annotations]
    assert titles == ["without: 56 tokens computed", "with a cache: 11 tokens computed"]


def test_smaller_blocks_waste_less():
    titles = [kv_pictures.reserved_figure([100, 900, 33], 1024, n).layout.title.text for n in (None, 256, 16)]
    waste = [int(title.split(": ")[1].split("%")[0]) for title in titles]
    assert waste[0] > waste[1] > waste[2]


@pytest.mark.parametrize("context", [1024, 4096, 32_768])
def test_the_calculator_shows_rooflines_numbers(context):
    wanted = max_batch(MODELS["Llama-3-8B"], DEVICES["H100"], context)
    assert kv_calculator.fits("Llama-3-8B", "H100", 1, context, "bf16", "bf16") == wanted
    fig = kv_calculator.calculator_figure(
        ["Llama-3-8B"], "Llama-3-8B", "H100", 1, context, wanted + 1, "bf16", "bf16"
    )
    assert f"at most {wanted} sequences fit" in fig.layout.title.text
    assert fig.layout.title.text.endswith("does not fit")


def test_the_calculator_draws_models_that_do_not_fit_and_refuses_unknown_ones():
    assert kv_calculator.fits("Llama-3-70B", "H100", 1, 4096, "bf16", "bf16") == 0
    fig = kv_calculator.calculator_figure(["Llama-3-70B"], "Llama-3-70B", "H100", 1, 4096, 1, "bf16", "bf16")
    assert "not one sequence fits" in fig.layout.title.text
    with pytest.raises(ValueError, match="choose from"):
        kv_calculator.kv_calculator(["Llama-9"])
