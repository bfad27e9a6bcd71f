"""The interactive parts of lessons 00 and 01: what they compute, and that their pictures show it."""

import ipywidgets
import pytest
import torch
from small_models import small_model

from minitransformer import generate, load_pretrained
from minitransformer.bundled import stories, tasks
from minitransformer.course.dependencies import longest_chain
from minitransformer.course.examples import examples
from minitransformer.course.explorers import attention_map, attention_pictures, machine_card, recurrence
from minitransformer.course.explorers import token_stream as streams
from minitransformer.layers.attention import causal_mask
from minitransformer.roofline import DEVICES


@pytest.fixture(scope="module")
def bundled():
    return load_pretrained()


# --- examples -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_examples_are_texts_of_the_models_world(seed):
    made = examples(seed, items=9, digits=5)
    assert made == examples(seed, items=9, digits=5) != examples(seed + 1, items=9, digits=5)
    a, b = made["sum"].prompt.removeprefix("Steps: ").rstrip("=").split("+")
    assert tasks.read_sum(made["sum"].answer) == int(a) + int(b)
    name, thing = made["recall"].prompt.split()[-1], made["recall"].answer.strip(" .")
    assert f" {name} {thing}" in made["recall"].prompt
    whole = examples(seed, sentences=99)["story"].prompt
    assert stories.is_story(whole.removesuffix(".")) or stories.is_story(whole)
    assert whole.startswith(made["story"].prompt)


# --- attention map --------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"num_key_value_heads": 1}, {"sliding_window": 4}], ids=str)
def test_attention_weights_are_those_that_the_model_used(changes):
    model = small_model(attention="reference", **changes)
    ids = torch.randint(97, (1, 9))
    weights = attention_map.attention_weights(model, ids)
    assert weights.shape == (2, 4, 9, 9)
    assert torch.allclose(weights.sum(-1), torch.ones(2, 4, 9), atol=1e-5)
    assert not weights[..., ~causal_mask(9, 9, model.config.sliding_window)].any()
    # With these shares the first layer's values mix to what the layer's attention gives.
    layer, seen = model.layers[0].self_attn, {}
    layer.v_proj.register_forward_hook(lambda _m, _i, out: seen.update(v=out))
    layer.o_proj.register_forward_pre_hook(lambda _m, inputs: seen.update(mixed=inputs[0]))
    with torch.inference_mode():
        model(ids)
    v = seen["v"].unflatten(-1, (-1, model.config.head_dim)).transpose(1, 2)
    v = v.repeat_interleave(model.config.group_size, dim=1)
    with torch.inference_mode():
        mixed = (weights[0] @ v[0]).transpose(0, 1).flatten(1)
        assert torch.allclose(mixed, seen["mixed"][0], atol=1e-5)


def test_looking_leaves_the_model_as_it_was():
    model = small_model()
    attend = [layer.self_attn.attend for layer in model.layers]
    ids = torch.randint(97, (1, 6))
    before = model(ids)
    attention_map.attention_weights(model, ids)
    with attention_map.without_heads(model, [(0, 1), (1, 3)]):
        assert not torch.allclose(model(ids), before)
    assert [layer.self_attn.attend for layer in model.layers] == attend
    assert torch.equal(model(ids), before)


def test_a_silenced_head_adds_nothing():
    model, ids = small_model(), torch.randint(97, (1, 6))
    changed = small_model()
    D = model.config.head_dim
    with torch.no_grad():
        changed.layers[1].self_attn.o_proj.weight[:, 2 * D : 3 * D] = 0
    with attention_map.without_heads(model, [(1, 2)]):
        assert torch.allclose(model(ids), changed(ids), atol=1e-5)
    whole, without = attention_map.head_values(model, ids, answer_id=7)
    assert whole == pytest.approx(model(ids)[0, -1].softmax(-1)[7].item(), rel=1e-4)
    assert without[1, 2].item() == pytest.approx(changed(ids)[0, -1].softmax(-1)[7].item(), rel=1e-4)


def test_the_bundled_model_finds_answers_as_lesson_01_says(bundled):
    """Heads of a layer copy a name to the thing behind it; heads of a later one look there when asked."""
    model, tokenizer = bundled
    recall = examples()["recall"]
    ids = torch.tensor([tokenizer.encode(recall.prompt)])
    target = ids[0, :-1].tolist().index(ids[0, -1]) + 1
    weights = attention_map.attention_weights(model, ids)
    finders = (weights[:, :, -1, target] > 0.5).nonzero().tolist()
    copiers = (weights[:, :, target, target - 1] > 0.5).nonzero().tolist()
    assert finders and copiers and min(layer for layer, _ in finders) > min(layer for layer, _ in copiers)
    right = tokenizer.encode(recall.answer, add_special_tokens=False)[0]
    for group in (finders, copiers):
        with attention_map.without_heads(model, group):
            assert model(ids)[0, -1].softmax(-1)[right] < 0.1
    assert model(ids)[0, -1].softmax(-1)[right] > 0.9


def test_the_map_names_the_token_most_looked_at():
    weights = torch.eye(4).expand(2, 3, 4, 4)
    fig = attention_map.attention_figure(weights, list("abcd"), layer=1, head=2, query=3)
    assert fig.layout.title.text == 'layer 1, head 2: "d" (token 3) takes most from "d" (100%)'


def test_every_place_of_the_slider_is_a_token_of_the_chosen_text(bundled, panels):
    model, tokenizer = bundled
    texts = {"short": "Ada", "long": "Ada lamp, Ben book."}
    attention_map.attention_map(model, tokenizer, texts)
    (panel,) = panels
    text, looks = panel.controls["text"], panel.controls["looks"]
    for name in ("short", "long", "short"):
        text.value = name
        assert looks.max == looks.value == len(tokenizer.encode(texts[name])) - 1
        before = panel.live.figure
        looks.value -= 1
        assert panel.live.figure != before and panel.message.value == ""


# --- the live stream ------------------------------------------------------------------------------------


def test_a_stream_is_greedy_generation_with_a_time_for_every_token(bundled):
    model, tokenizer = bundled
    grown = []
    answer = streams.stream(
        model, tokenizer, "Sum: 12+34=", on_piece=lambda a: grown.append(len(a.pieces)), max_tokens=9
    )
    ids = torch.tensor([tokenizer.encode("Sum: 12+34=")])
    whole = generate(model, ids, 9, stop_ids=tokenizer.stop_ids)[0, ids.shape[1] :]
    assert answer.text == tokenizer.decode(whole) and answer.prompt_tokens == ids.shape[1]
    assert len(answer.seconds) == len(whole) and min(answer.seconds) > 0
    assert grown == list(range(1, len(answer.pieces) + 1))
    assert answer.ttft == answer.seconds[0] and answer.tpot > 0


def test_a_prompt_beyond_the_window_is_refused_in_words(bundled):
    model, tokenizer = bundled
    with pytest.raises(ValueError, match="window"):
        streams.stream(model, tokenizer, "Ada " * 300)
    live = streams.TokenStream(model, tokenizer, examples())
    live.prompt.value = "Ada " * 300
    assert live.answer() is None and "window" in live.text.value and not live.button.disabled


def test_the_live_stream_answers_the_chosen_prompt(bundled):
    live = streams.TokenStream(*bundled, examples())
    live.pace.value = 0.0
    live.choice.value = "recall"
    answer = live.answer()
    assert answer.text.startswith(examples()["recall"].answer)
    drawn = streams.token_times(answer)
    assert len(drawn.data[0].y) + len(drawn.data[1].y) == len(answer.seconds)
    assert live.figure.figure["layout"]["title"]["text"] == drawn.layout.title.text


def test_text_in_the_stream_is_escaped():
    answer = streams.Answer("<i>", 1, ["<b>", "&"], [0.1, 0.1])
    shown = streams.answer_html(answer)
    assert "&lt;i&gt;" in shown and "&lt;b&gt;" in shown and "&amp;" in shown


# --- machine card ---------------------------------------------------------------------------------------


def test_two_clocks_show_the_roofline_times():
    config = small_model().config
    a100, h100 = DEVICES["A100"], DEVICES["H100"]
    fig = machine_card.two_clocks_figure([a100, h100], "m", config, tokens=64)
    arithmetic, reading = fig.data
    assert arithmetic.x[0] == pytest.approx(2 * config.num_parameters * 64 / a100.peak())
    assert reading.x[1] == pytest.approx(2 * config.num_parameters / h100.bandwidth)
    assert "memory decides here" in fig.layout.title.text
    crossed = machine_card.two_clocks_figure([a100, h100], "m", config, tokens=4096)
    assert "compute decides here, compute decides on the H100" in crossed.layout.title.text
    assert crossed.layout.xaxis.range == fig.layout.xaxis.range


# --- pictures and chains --------------------------------------------------------------------------------


@pytest.mark.parametrize(("T", "S"), [(1, 7), (4, 4), (3, 9)])
def test_the_mask_picture_counts_what_may_be_seen(T, S):
    fig = attention_pictures.mask_figure(T, S)
    assert [sum(map(sum, trace.z)) for trace in fig.data] == [T * S - T * (T - 1) // 2, T * (T + 1) // 2]
    with pytest.raises(ValueError, match="at least as many keys"):
        attention_pictures.mask_figure(S + 1, S)


def test_the_rotation_picture_depends_on_the_distance_alone():
    frequencies = [10_000 ** (-i / 8) for i in range(8)]
    titles = [
        attention_pictures.rope_figure(frequencies, query, key).layout.title.text.split("distance")[1]
        for query, key in ((9, 5), (49, 45))
    ]
    assert titles[0] == titles[1] and "product 1.000" not in titles[0]


def test_sharing_is_drawn_for_any_divisor_and_refused_for_others():
    assert "MQA" in attention_pictures.sharing_figure(6, 1, 8).layout.title.text
    assert "1,024 bytes" in attention_pictures.sharing_figure(8, 4, 64).layout.title.text
    with pytest.raises(ValueError, match="shared out evenly"):
        attention_pictures.sharing_figure(6, 4, 8)


def test_the_longest_chain_counts_products_that_wait_for_each_other():
    a, b = torch.randn(3, 3, requires_grad=True), torch.randn(3, 3)
    assert longest_chain(a @ b) == 1
    assert longest_chain(a @ b + a @ b) == 1  # side by side
    assert longest_chain(torch.tanh(a @ b) @ b) == 2
    chain = a
    for _ in range(3000):  # deeper than Python's recursion goes
        chain = torch.tanh(chain @ b)
    assert longest_chain(chain + a @ b) == 3000
    assert longest_chain(a + 1) == 0
    with pytest.raises(ValueError, match="gradients"):
        longest_chain(b @ b)


def test_least_times_are_the_longer_of_arithmetic_and_chain():
    h100 = DEVICES["H100"]
    assert recurrence.floor_seconds(h100.peak(), 1, h100, 1e-6) == pytest.approx(1.0)
    assert recurrence.floor_seconds(1.0, 1000, h100, 1e-6) == pytest.approx(1e-3)
    layers = {"one": lambda T: (1e9 * T, 4), "chain": lambda T: (1e9 * T, T)}
    alone, together = (recurrence.floors_figure(layers, h100, batch, 2) for batch in (1, 1024))
    assert alone.data[1].y[0] > alone.data[0].y[0]
    assert together.data[1].y == together.data[0].y  # enough sequences hide the chain


@pytest.mark.parametrize(
    "show",
    [
        lambda model, tokenizer: attention_map.attention_map(model, tokenizer, {"a": "Ada lamp", "b": "Ben"}),
        lambda model, tokenizer: machine_card.two_clocks(DEVICES["T4"], {"m": model.config}),
        lambda *_: attention_pictures.mask_picture(),
        lambda *_: attention_pictures.rope_picture([1.0, 0.1, 0.01]),
        lambda *_: attention_pictures.sharing_picture(8, 32),
        lambda *_: recurrence.floors_picture({"a": lambda T: (1e9 * T, 4), "b": lambda T: (1e9 * T, T)}),
    ],
    ids=["map", "clocks", "mask", "rope", "sharing", "floors"],
)
def test_every_control_redraws_its_figure(show, bundled, panels):
    """Each control is moved to its other values; the figure must follow, and never complain."""
    show(*bundled)
    (panel,) = panels
    for name, widget in panel.controls.items():
        before = panel.live.figure
        if isinstance(widget, ipywidgets.IntSlider):
            widget.value = widget.min if widget.value != widget.min else widget.max
        else:
            widget.index = len(widget.options) - 1 if widget.index == 0 else 0
        assert panel.live.figure != before, name
        assert panel.message.value == ""
