"""Pictures of lesson 06: waves of tiles, the order in which tiles are visited, steps and sawteeth.

Each function returns a plotly figure or a trace of one. All numbers come from `roofline.tiles`. Colours of
waves mean nothing by themselves and come round again; grey is idle.
"""

import statistics
from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from minitransformer.course.explorers.kv_pictures import category_map, legend, legend_below
from minitransformer.course.palette import (
    COMPUTE,
    DECODE,
    IDLE,
    MEMORY,
    SERIES,
    TEMPLATE,
    TEXT,
    figure,
    shade,
)
from minitransformer.roofline.tiles import Tile, matmul_efficiency, num_waves, tile_grid, visiting_order

WAVE_COLOURS = [colour for colour in SERIES if colour != IDLE]
RUNS, LATER, FETCHED, NOT_FETCHED = "runs now", "runs later", "fetched", "not needed yet"
ORDER_KINDS = {RUNS: DECODE, LATER: shade(IDLE, 0.4), FETCHED: MEMORY, NOT_FETCHED: shade(MEMORY, 0.15)}


def tile_map(M: int, N: int, tile: Tile, num_sms: int, group: int = 1) -> go.Heatmap:
    """The tiles at their places in the result, coloured by the wave that computes them."""
    rows, columns = tile_grid(M, N, tile)
    wave = [[0] * columns for _ in range(rows)]
    words = [[""] * columns for _ in range(rows)]
    for program, (row, column) in enumerate(visiting_order(rows, columns, group)):
        wave[row][column] = program // num_sms
        words[row][column] = f"program {program}: row {row}, column {column}, wave {program // num_sms + 1}"
    return _wave_map(
        wave,
        x=[(column + 0.5) * tile[1] for column in range(columns)],
        y=[(row + 0.5) * tile[0] for row in range(rows)],
        text=words,
    )


def sm_map(programs: int, num_sms: int) -> go.Heatmap:
    """One row an SM, one column a wave; what is idle in the last wave stays grey."""
    waves = num_waves(programs, num_sms)
    busy = [
        [wave if wave * num_sms + sm < programs else -1 for wave in range(waves)] for sm in range(num_sms)
    ]
    words = [
        [f"SM {sm}, wave {wave + 1}: {'idle' if one < 0 else 'a tile'}" for wave, one in enumerate(row)]
        for sm, row in enumerate(busy)
    ]
    return _wave_map(busy, x=list(range(1, waves + 1)), y=list(range(num_sms)), text=words)


def sawtooth(sizes: Sequence[int], N: int, tile: Tile, num_sms: int, **trace) -> go.Scatter:
    """The share of the peak that is left at each M of `sizes`, as a line."""
    shares = [matmul_efficiency(M, N, tile, num_sms) for M in sizes]
    look = {"mode": "lines", "line": {"color": COMPUTE, "width": 2}, "name": f"{tile[0]} x {tile[1]}"}
    words = f"M=%{{x:,}}: %{{y:.1%}}<extra>tiles of {tile[0]} x {tile[1]}</extra>"
    return go.Scatter(x=list(sizes), y=shares, hovertemplate=words, **(look | trace))


def sawtooth_figure(sizes: Sequence[int], N: int, tiles: Sequence[Tile], num_sms: int) -> go.Figure:
    """The sawtooth of one or several tiles over M; the first in front."""
    colours = [COMPUTE, *WAVE_COLOURS]
    lines = [
        sawtooth(sizes, N, tile, num_sms, line={"color": colour, "width": 2.5 if i == 0 else 1.2})
        for i, (tile, colour) in enumerate(zip(tiles, colours, strict=False))
    ]
    title = f"Share of the peak that whole tiles and waves leave: N = {N:,}, {num_sms} SMs"
    fig = figure(*reversed(lines), title=title, height=380)
    fig.update_yaxes(title_text="share of the peak", tickformat=".0%", rangemode="tozero")
    return fig.update_xaxes(title_text="M, rows of the result", tickformat=",")


def _wave_map(wave, **trace) -> go.Heatmap:
    """A map of wave numbers in colours that come round; -1 is idle."""
    colours = [shade(IDLE, 0.35), *WAVE_COLOURS]
    z = [[0 if one < 0 else 1 + one % len(WAVE_COLOURS) for one in row] for row in wave]
    edges = [i / len(colours) for i in range(len(colours) + 1)]
    scale = [[edge, colour] for i, colour in enumerate(colours) for edge in edges[i : i + 2]]
    gaps = {"xgap": len(wave[0]) <= 64, "ygap": len(wave) <= 64}  # lines between cells, where there is room
    look = {"showscale": False, "hovertemplate": "%{text}<extra></extra>"} | gaps
    return go.Heatmap(z=z, colorscale=scale, zmin=-0.5, zmax=len(colours) - 0.5, **look, **trace)


def order_figure(rows: int, columns: int, groups: Sequence[int], at_once: int) -> go.Figure:
    """Which tiles the first `at_once` programs compute, and which strips of A and B they need, by group size.

    The column at the left of each map stands for A's rows of tiles, the row above it for B's columns.
    """
    maps, titles = [], []
    for group in groups:
        wave = visiting_order(rows, columns, group)[:at_once]
        maps.append(_order_map(rows, columns, wave))
        strips = len({row for row, _ in wave}), len({column for _, column in wave})
        name = "row by row" if group == 1 else f"groups of {group} rows"
        titles.append(f"{name}: {strips[0]} + {strips[1]} strips")
    fig = make_subplots(cols=len(groups), subplot_titles=titles, horizontal_spacing=0.05)
    for column, cells in enumerate(maps, start=1):
        fig.add_trace(category_map(cells, ORDER_KINDS), row=1, col=column)
    fig.add_traces(legend(ORDER_KINDS))
    title = f"{at_once} programs at once, and what of A (left) and B (top) they need"
    fig.update_layout(template=TEMPLATE, title=title, height=400)
    fig.update_annotations(font={"color": TEXT, "size": 13})
    fig.update_xaxes(visible=False).update_yaxes(visible=False, autorange="reversed")
    return legend_below(fig).update_layout(margin_t=80, legend_y=-0.02)


def _order_map(rows: int, columns: int, wave: Sequence[tuple[int, int]]) -> list[list[str | None]]:
    """The tiles of a wave, with the strips of B in a row above them and those of A in a column beside."""
    tiles, needed_rows, needed_columns = set(wave), {row for row, _ in wave}, {column for _, column in wave}
    above = [FETCHED if column in needed_columns else NOT_FETCHED for column in range(columns)]
    cells = [[None, None, *above], [None] * (columns + 2)]
    for row in range(rows):
        beside = FETCHED if row in needed_rows else NOT_FETCHED
        cells.append([beside, None, *(RUNS if (row, c) in tiles else LATER for c in range(columns))])
    return cells


def steps_figure(
    sizes: Sequence[int], predicted: Sequence[float], measured: Sequence[float], title: str
) -> go.Figure:
    """Time over M: what whole tiles and waves predict, and what came, in the median unit between the two."""
    unit = statistics.median(time / steps for time, steps in zip(measured, predicted, strict=True))
    fig = figure(
        go.Scatter(
            x=list(sizes),
            y=list(predicted),
            name="predicted",
            mode="lines",
            line={"color": COMPUTE, "dash": "dot", "shape": "vh"},
        ),
        go.Scatter(
            x=list(sizes),
            y=[time / unit for time in measured],
            name="measured",
            mode="markers",
            marker={"color": COMPUTE, "size": 9},
        ),
        title=title,
        height=360,
    )
    fig.update_yaxes(title_text="time, in predicted steps", rangemode="tozero")
    return fig.update_xaxes(title_text="M, rows of the result")


def waves_figure(rows: Sequence[dict], device: str) -> go.Figure:
    """The item "waves" of a GPU's record: FLOP/s over M, ours and the library's, and what waves predict.

    The prediction has one free number, the rate of a full chip, taken as the median that the rows imply.
    """
    sizes = [row["M"] for row in rows]
    shares = [
        matmul_efficiency(row["M"], row["N"], (row["block_m"], row["block_n"]), row["sms"]) for row in rows
    ]
    full = statistics.median(row["flops"] / share for row, share in zip(rows, shares, strict=True))
    lines = {
        "predicted by tiles and waves": (
            [full * share for share in shares],
            {"color": COMPUTE, "dash": "dot"},
        ),
        "measured, this tile": ([row["flops"] for row in rows], {"color": COMPUTE}),
        "measured, the library": ([row["library_flops"] for row in rows], {"color": IDLE}),
    }
    traces = [
        go.Scatter(x=sizes, y=y, name=name, line=line, mode="lines" if "dash" in line else "lines+markers")
        for name, (y, line) in lines.items()
    ]
    first = rows[0]
    title = (
        f"{device}: tiles of {first['block_m']} x {first['block_n']}, N = {first['N']:,}, K = {first['K']:,}"
    )
    fig = figure(*traces, title=title, height=420)
    fig.update_yaxes(title_text="FLOP/s", exponentformat="SI", rangemode="tozero")
    fig.update_xaxes(title_text="M, rows of the result", tickformat=",")
    return legend_below(fig)
