"""The mask of a chunk: which keys its queries see when it is aligned right, and when it is not."""

import torch
from plotly.subplots import make_subplots

from minitransformer.course.explorers.kv_pictures import category_map, legend, legend_below
from minitransformer.course.figures import show
from minitransformer.course.palette import IDLE, PREFILL, TEMPLATE, TEXT
from minitransformer.layers.attention import causal_mask


def mask_pictures(T: int, S: int):
    """Shows which of S keys each of T queries sees: with the mask aligned bottom right, and top left."""
    titles = ["aligned bottom right", "is_causal=True: aligned top left"]
    fig = make_subplots(cols=2, subplot_titles=titles, shared_yaxes=True, horizontal_spacing=0.06)
    kinds = {"seen": PREFILL, "hidden": IDLE}
    masks = [causal_mask(T, S), torch.ones(T, S, dtype=torch.bool).tril()]
    for column, mask in enumerate(masks, start=1):
        rows = [["seen" if seen else "hidden" for seen in row] for row in mask.tolist()]
        fig.add_trace(category_map(rows, kinds, y=[f"query {t}" for t in range(T)]), row=1, col=column)
    fig.add_traces(legend(kinds))
    title = f"A chunk of {T} tokens behind {S - T} cached ones"
    fig.update_layout(template=TEMPLATE, title=title, height=260 + 20 * T, margin_t=90)
    fig.update_annotations(font_color=TEXT)
    fig.update_xaxes(title_text="key", dtick=1, showgrid=False).update_yaxes(autorange="reversed")
    show(legend_below(fig), "on the right every query misses the newest keys, its own included")
