"""Where a model looks: attention weights of every layer and head, as maps, and what a head is worth.

A map tells where a head looks, not whether that matters. `without_heads` takes heads away, so that one can
ask what the answer loses.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import ipywidgets
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from minitransformer.course.figures import interact, show
from minitransformer.course.palette import DECODE, PREFILL, TEMPLATE, TEXT, figure, ramp
from minitransformer.layers import reference_attention
from minitransformer.model import Transformer


@torch.inference_mode()
def attention_weights(model: Transformer, input_ids: torch.Tensor) -> torch.Tensor:
    """input_ids [1, T] -> weights [L, H, T, T]: how much query t (row) takes from key s (column).

    The weights come out of attention itself when every value is a one-hot vector.
    """
    T = input_ids.shape[1]
    recorded = []

    def recording(attend):
        def attend_and_record(q, k, v, window=None):
            one_hot = torch.eye(T, dtype=q.dtype, device=q.device).expand(*k.shape[:3], T)
            recorded.append(reference_attention(q, k, one_hot, window)[0])
            return attend(q, k, v, window)

        return attend_and_record

    modules = [layer.self_attn for layer in model.layers]
    before = [module.attend for module in modules]
    try:
        for module in modules:
            module.attend = recording(module.attend)
        model(input_ids)
    finally:
        for module, attend in zip(modules, before, strict=True):
            module.attend = attend
    return torch.stack(recorded)


@contextmanager
def without_heads(model: Transformer, heads: Sequence[tuple[int, int]]) -> Iterator[Transformer]:
    """The model with what these (layer, head) pairs say silenced: their outputs become zeros."""
    D = model.config.head_dim
    hooks = []
    for layer, head in heads:

        def silence(_module, inputs, start=head * D):
            x = inputs[0].clone()
            x[..., start : start + D] = 0
            return (x,)

        hooks.append(model.layers[layer].self_attn.o_proj.register_forward_pre_hook(silence))
    try:
        yield model
    finally:
        for hook in hooks:
            hook.remove()


@torch.inference_mode()
def head_values(model: Transformer, input_ids: torch.Tensor, answer_id: int) -> tuple[float, torch.Tensor]:
    """Probability of `answer_id` after input_ids [1, T], and that [L, H] with one head taken away each."""

    def probability() -> float:
        return model(input_ids, last_only=True)[0, -1].softmax(-1)[answer_id].item()

    L, H = model.config.num_hidden_layers, model.config.num_attention_heads
    without = torch.zeros(L, H)
    for layer in range(L):
        for head in range(H):
            with without_heads(model, [(layer, head)]):
                without[layer, head] = probability()
    return probability(), without


def token_texts(tokenizer, ids: Sequence[int]) -> list[str]:
    """The text of each token by itself, a space shown as one, special tokens by name."""
    return [tokenizer.decode([i], skip_special_tokens=False).replace(" ", "␣") for i in ids]


def attention_figure(
    weights: torch.Tensor, tokens: list[str], layer: int, head: int, query: int
) -> go.Figure:
    """One head: the whole map, and above it what the token `query` takes from each token it may see."""
    row, places = weights[layer, head, query], list(range(len(tokens)))
    fig = make_subplots(rows=2, shared_xaxes=True, row_heights=[0.22, 0.78], vertical_spacing=0.02)
    colours = [PREFILL if i == query else DECODE for i in places]
    hover = "%{x}: %{y:.0%}<extra></extra>"
    fig.add_trace(go.Bar(x=places, y=row.tolist(), marker_color=colours, hovertemplate=hover), row=1, col=1)
    fig.add_trace(_map(weights[layer, head], tokens), row=2, col=1)
    best = int(row.argmax())
    takes = f'"{tokens[query]}" (token {query}) takes most from "{tokens[best]}" ({row[best]:.0%})'
    title = f"layer {layer}, head {head}: {takes}"
    fig.update_layout(template=TEMPLATE, title=title, height=760, showlegend=False, bargap=0.1, margin_t=45)
    outline = {"type": "rect", "x0": -0.5, "x1": len(tokens) - 0.5, "y0": query - 0.5, "y1": query + 0.5}
    fig.add_shape(outline | {"line": {"color": PREFILL, "width": 2}}, row=2, col=1)
    labels = {"tickvals": places, "ticktext": tokens, "tickfont": {"size": 10}, "showgrid": False}
    labels |= {"zeroline": False}
    fig.update_xaxes(labels | {"tickangle": -90}, row=2, col=1)
    fig.update_yaxes(labels | {"autorange": "reversed"}, row=2, col=1)
    return fig.update_yaxes(range=[0, 1], tickformat=".0%", row=1, col=1)


def _map(weights: torch.Tensor, tokens: list[str], **options) -> go.Heatmap:
    z = weights.masked_fill(~torch.ones_like(weights, dtype=torch.bool).tril(), torch.nan)
    return go.Heatmap(
        z=z.numpy().round(4),
        zmin=0,
        zmax=1,
        colorscale=ramp(DECODE),
        showscale=False,
        hoverongaps=False,
        hovertemplate="from %{y} to %{x}: %{z:.0%}<extra></extra>",
        **options,
    )


def attention_map(model: Transformer, tokenizer, texts: dict[str, str], *, layer: int = 0, head: int = 0):
    """Shows the map of one head, at first of (`layer`, `head`); choose text, layer, head, and who looks."""
    ids = {name: tokenizer.encode(text) for name, text in texts.items()}
    weights = {name: attention_weights(model, torch.tensor([i])).cpu() for name, i in ids.items()}
    tokens = {name: token_texts(tokenizer, i) for name, i in ids.items()}
    text = ipywidgets.Dropdown(options=list(texts), description="text")
    looks = ipywidgets.IntSlider(
        description="token that looks", style={"description_width": "initial"}, layout={"width": "420px"}
    )

    def look_from_the_end(_change=None):
        looks.max = len(tokens[text.value]) - 1
        looks.value = looks.max

    look_from_the_end()
    text.observe(look_from_the_end, names="value")  # before the figure follows: it gets a token of its text
    interact(
        lambda text, layer, head, looks: attention_figure(weights[text], tokens[text], layer, head, looks),
        caption="each row is a token that looks back, each column a token that is looked at",
        text=text,
        layer=_choice("layer", model.config.num_hidden_layers, layer),
        head=_choice("head", model.config.num_attention_heads, head),
        looks=looks,
    )


def _choice(name: str, count: int, value: int) -> ipywidgets.Widget:
    return ipywidgets.Dropdown(options=list(range(count)), value=value, description=name)


def all_heads(model: Transformer, tokenizer, text: str):
    """Shows every head's map at once, one row a layer: to find the heads worth a closer look."""
    ids = tokenizer.encode(text)
    weights, tokens = attention_weights(model, torch.tensor([ids])).cpu(), token_texts(tokenizer, ids)
    L, H = weights.shape[:2]
    titles = [f"layer {layer}, head {head}" for layer in range(L) for head in range(H)]
    gaps = {"horizontal_spacing": 0.02, "vertical_spacing": 0.22 / L}
    fig = make_subplots(rows=L, cols=H, subplot_titles=titles, **gaps)
    for layer in range(L):
        for head in range(H):
            fig.add_trace(_map(weights[layer, head], tokens), row=layer + 1, col=head + 1)
    fig.update_annotations(font_size=11, font_color=TEXT)
    fig.update_layout(template=TEMPLATE, title="Every head: rows look, columns are looked at")
    fig.update_xaxes(visible=False).update_yaxes(visible=False, autorange="reversed")
    show(fig.update_layout(height=70 + 190 * L), "a dark diagonal is a head that looks at a fixed distance")


def head_grid(values: torch.Tensor, title: str, *, colour: str = DECODE):
    """Shows a share (0 to 1) for every head, layers down and heads across."""
    scale = [[0, "#F0F0F0"], [1, colour]]  # opaque: the numbers must be readable on any page
    style = {"colorscale": scale, "zmin": 0, "zmax": 1, "showscale": False, "xgap": 2, "ygap": 2}
    fig = figure(go.Heatmap(z=values.numpy(), hoverinfo="skip", **style), title=title)
    for layer, row in enumerate(values.tolist()):
        for head, value in enumerate(row):
            ink = {"color": "white" if value > 0.6 else "black"}
            fig.add_annotation(x=head, y=layer, text=f"{value:.0%}", showarrow=False, font=ink)
    axis = {"dtick": 1, "showgrid": False, "zeroline": False}
    fig.update_xaxes(axis, title="head").update_yaxes(axis, autorange="reversed", title="layer")
    show(fig.update_layout(height=110 + 40 * len(values), margin_t=45), title)
