"""Model shapes of equal size: their products, their prices, and the picture of them."""

import itertools

import pytest

from minitransformer.course.explorers import shape_pictures
from minitransformer.roofline import DEVICES, MODELS
from minitransformer.roofline.shapes import linear_products, linear_seconds, linear_share, same_size_shapes
from minitransformer.roofline.tiles import SMS, matmul_seconds

LLAMA_2, LLAMA_3 = MODELS["Llama-2-7B"], MODELS["Llama-3-8B"]
TILE = (128, 256)


@pytest.mark.parametrize("config", [LLAMA_2, LLAMA_3, MODELS["Qwen3-0.6B"]], ids=lambda c: str(c.hidden_size))
def test_products_multiply_every_weight_but_the_embedding_once_a_token(config):
    products = linear_products(config, tokens=7)
    assert all(M == 7 for M, *_ in products.values())
    weights = sum(N * K * times for _, N, K, times in products.values())
    norms = (2 * config.num_hidden_layers + 1) * config.hidden_size
    norms += config.qk_norm * 2 * config.head_dim * config.num_hidden_layers
    tied = config.vocab_size * config.hidden_size * config.tie_word_embeddings
    looked_up = config.vocab_size * config.hidden_size
    assert weights == config.num_parameters - norms - looked_up + tied


def test_the_pass_takes_what_its_products_take_one_after_another():
    chip, sms = DEVICES["H100"], SMS["H100"]
    products = linear_products(LLAMA_3, 2048).values()
    whole = sum(times * matmul_seconds(M, N, K, TILE, chip, sms) for M, N, K, times in products)
    assert linear_seconds(LLAMA_3, 2048, TILE, chip, sms) == pytest.approx(whole)
    share = linear_share(LLAMA_3, 2048, TILE, chip, sms)
    flops = sum(2 * M * N * K * times for M, N, K, times in products)
    assert share == pytest.approx(flops / chip.peak() / whole) and share <= 1


def test_shapes_of_equal_size_keep_weights_heads_and_layers():
    shapes = same_size_shapes(LLAMA_3, range(1024, 8192, 64))
    assert len(shapes) > 3 and LLAMA_3.hidden_size in {s.hidden_size for s in shapes}
    for shape in shapes:
        assert shape.num_parameters == pytest.approx(LLAMA_3.num_parameters, rel=0.01)
        assert shape.q_size == shape.hidden_size and shape.group_size == LLAMA_3.group_size
        assert shape.intermediate_size % 64 == 0
        assert shape.num_hidden_layers == LLAMA_3.num_hidden_layers
        assert shape.vocab_size == LLAMA_3.vocab_size


def test_the_shape_itself_is_found_again():
    (same,) = same_size_shapes(LLAMA_2, [LLAMA_2.hidden_size])
    assert same == LLAMA_2


def test_a_hidden_size_without_whole_heads_or_room_for_a_feed_forward_layer_has_no_shape():
    assert same_size_shapes(LLAMA_2, [4100]) == []
    assert same_size_shapes(LLAMA_2, [16_384]) == []


def test_the_best_shape_on_one_chip_is_not_the_best_on_another():
    shapes = same_size_shapes(LLAMA_2, shape_pictures.HIDDEN)
    best = {
        chip: max(shapes, key=lambda s: linear_share(s, 2048, TILE, DEVICES[chip], SMS[chip]))
        for chip in ("H100", "A100")
    }
    assert best["H100"].hidden_size == 4096 != best["A100"].hidden_size


@pytest.mark.parametrize(("tokens", "chip"), [(2048, "H100"), (4224, "A100"), (256, "L4")])
def test_the_picture_shows_every_shape_once_at_its_share(tokens, chip):
    fig = shape_pictures.shapes_figure(LLAMA_2, tokens, chip)
    drawn = dict(itertools.chain.from_iterable(zip(t.x, t.y, strict=True) for t in fig.data))
    shapes = same_size_shapes(LLAMA_2, shape_pictures.HIDDEN)
    right = {s.hidden_size: linear_share(s, tokens, TILE, DEVICES[chip], SMS[chip]) for s in shapes}
    assert drawn == right and sum(len(t.x) for t in fig.data) == len(right)
    assert f"hidden size {max(right, key=right.get):,} is best" in fig.layout.title.text
    assert min(right.values()) > 0.35, "the axis begins above some of the points"


@pytest.mark.parametrize(("n", "power"), [(4096, 4096), (4608, 512), (11_008, 256), (50_257, 1)])
def test_twos_is_the_largest_power_of_two_in_a_number(n, power):
    assert shape_pictures.twos(n) == power
