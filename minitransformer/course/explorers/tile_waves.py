"""The tile and wave visualiser: a result cut into tiles, the tiles dealt out to SMs wave by wave.

Grey is idle, or computed for nothing. All numbers are `roofline.tiles`'; what a real chip does besides is
not drawn.
"""

import ipywidgets
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from minitransformer.course.explorers.tile_pictures import sawtooth, sm_map, tile_map
from minitransformer.course.figures import interact
from minitransformer.course.palette import IDLE, TEMPLATE, TEXT, shade
from minitransformer.roofline.tiles import (
    SMS,
    Tile,
    matmul_efficiency,
    num_tiles,
    num_waves,
    tile_efficiency,
    tile_grid,
    wave_efficiency,
)

TILES: list[Tile] = [(128, 256), (128, 128), (64, 256), (64, 64), (16, 128)]
IN_TILES = 24  # a sawtooth shows the sizes of so many tiles around the chosen one


def tile_figure(M: int, N: int, tile: Tile, num_sms: int, group: int = 1) -> go.Figure:
    """Tiles of an [M, N] result by wave (left), SMs by wave (right), share of the peak over M (below)."""
    fig = make_subplots(
        rows=2,
        cols=2,
        specs=[[{}, {}], [{"colspan": 2}, None]],
        row_heights=[0.6, 0.4],
        vertical_spacing=0.2,
        horizontal_spacing=0.12,
        subplot_titles=["tiles of the result, by wave", "SMs (down) over waves; grey is idle", ""],
    )
    fig.add_trace(tile_map(M, N, tile, num_sms, group), row=1, col=1)
    fig.add_trace(sm_map(num_tiles(M, N, tile), num_sms), row=1, col=2)
    fig.add_traces(_sawtooth_here(M, N, tile, num_sms), rows=2, cols=1)
    _outline(fig, M, N, tile)
    fig.update_layout(template=TEMPLATE, title=verdict(M, N, tile, num_sms), height=640, showlegend=False)
    fig.update_layout(margin_t=80)
    fig.update_annotations(font={"color": TEXT, "size": 13})
    fig.update_yaxes(autorange="reversed", row=1, showgrid=False, zeroline=False)
    fig.update_xaxes(row=1, showgrid=False, zeroline=False)
    fig.update_xaxes(title_text="columns", row=1, col=1).update_yaxes(title_text="rows", row=1, col=1)
    fig.update_xaxes(title_text="wave", tickformat="d", nticks=9, row=1, col=2)
    fig.update_xaxes(title_text="M, rows of the result", row=2, col=1)
    fig.update_yaxes(title_text="share of the peak", tickformat=".0%", range=[0, 1.05], row=2, col=1)
    return fig


def verdict(M: int, N: int, tile: Tile, num_sms: int) -> str:
    """What both roundings cost, in a line."""
    rows, columns = tile_grid(M, N, tile)
    tiles = rows * columns
    return (
        f"{rows} x {columns} = {tiles:,} tiles in {_count(num_waves(tiles, num_sms), 'wave')}: "
        f"{tile_efficiency(M, N, tile):.1%} (tiles) x {wave_efficiency(tiles, num_sms):.1%} (waves) = "
        f"{matmul_efficiency(M, N, tile, num_sms):.1%}"
    )


def tile_waves(
    M: int = 4225, N: int = 4096, tile: Tile = (128, 256), num_sms: int = SMS["H100"], *, group: int = 8
):
    """Shows the visualiser with sliders, set to this product and chip."""
    tiles = TILES if tile in TILES else [tile, *TILES]
    interact(
        tile_figure,
        caption="the last wave holds few tiles, and most of its SMs are grey",
        M=_slider("M, rows", M, 1, 8192),
        N=_slider("N, columns", N, 1, 8192),
        tile=ipywidgets.Dropdown(
            options=[(f"{m} x {n}", (m, n)) for m, n in tiles], value=tile, description="tile"
        ),
        num_sms=_slider("SMs", num_sms, 1, 160),
        group=_slider("group, rows of tiles", group, 1, 32),
    )


def _outline(fig: go.Figure, M: int, N: int, tile: Tile):
    """The result's own edge, and a grey veil over what hangs over it."""
    rows, columns = tile_grid(M, N, tile)
    height, width = rows * tile[0], columns * tile[1]
    veil = {"fillcolor": shade(IDLE, 0.75), "line": {"width": 0}, "row": 1, "col": 1}
    fig.add_shape(type="rect", x0=0, x1=width, y0=M, y1=height, **veil)
    fig.add_shape(type="rect", x0=N, x1=width, y0=0, y1=M, **veil)
    edge = {"line": {"color": TEXT, "width": 2}, "row": 1, "col": 1}
    fig.add_shape(type="rect", x0=0, x1=N, y0=0, y1=M, **edge)


def _sawtooth_here(M: int, N: int, tile: Tile, num_sms: int) -> list[go.Scatter]:
    """The sawtooth around M, and a mark where M is."""
    first = max(1, M - IN_TILES // 2 * tile[0])
    sizes = sorted(
        {*range(first, first + IN_TILES * tile[0], max(tile[0] // 16, 1)), M, *_edges(first, tile[0])}
    )
    here = matmul_efficiency(M, N, tile, num_sms)
    marker = {"color": TEXT, "size": 11, "symbol": "diamond"}
    words = f"M={M:,}: {here:.1%}<extra>here</extra>"
    return [
        sawtooth(sizes, N, tile, num_sms),
        go.Scatter(x=[M], y=[here], mode="markers", marker=marker, hovertemplate=words),
    ]


def _edges(first: int, height: int) -> list[int]:
    """The sizes on both sides of each step, so that steps are drawn upright."""
    tiles = range(max(first // height, 1), first // height + IN_TILES + 1)
    return [size for n in tiles for size in (n * height, n * height + 1) if size >= first]


def _slider(label: str, value: int, least: int, most: int) -> ipywidgets.Widget:
    return ipywidgets.IntSlider(
        value=value,
        min=least,
        max=most,
        description=label,
        continuous_update=False,
        style={"description_width": "initial"},
        layout={"width": "340px"},
    )


def _count(amount: int, thing: str) -> str:
    return f"{amount:,} {thing}{'' if amount == 1 else 's'}"
