"""A paged cache as a picture: what each sequence sees as one line of tokens, and where its blocks lie.

The figure knows nothing of models: lengths in tokens, a block table, a number of blocks in memory.
"""

from collections.abc import Sequence

import ipywidgets
import plotly.graph_objects as go
import torch

from minitransformer.course.figures import interact
from minitransformer.course.palette import IDLE, SERIES, TEXT, figure, shade

LEAST_COLUMNS = 8  # blocks of memory in a row of the picture; more where a sequence has more
WIDTH = 0.92  # of a block; the rest is a gap
UNUSED = "#D0D0D0"  # opaque: the numbers in it must be readable on any page
COLOURS = [colour for colour in SERIES if colour != IDLE]


def blocks_needed(context_lens: Sequence[int], block_size: int) -> list[int]:
    """Blocks of each sequence: its length over the block size, rounded up."""
    if block_size < 1 or min(context_lens, default=0) < 0:
        raise ValueError(
            f"lengths of at least 0 and blocks of at least 1 token, got {context_lens}, {block_size}"
        )
    return [-(-length // block_size) for length in context_lens]


def wasted_slots(context_lens: Sequence[int], block_size: int) -> int:
    """Token slots that hold nothing: the rest of each last block."""
    return sum(blocks_needed(context_lens, block_size)) * block_size - sum(context_lens)


def scattered_table(
    context_lens: Sequence[int], block_size: int, num_blocks: int, seed: int = 0
) -> torch.Tensor:
    """A block table [B, M] as it looks after a while: free blocks are taken wherever they are.

    Entries that a sequence does not use are 0. Raises ValueError where the blocks do not suffice.
    """
    needed = blocks_needed(context_lens, block_size)
    if sum(needed) > num_blocks:
        raise ValueError(f"{sum(needed)} blocks of {block_size} tokens are needed, there are {num_blocks}")
    free = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(seed)).tolist()
    table = torch.zeros(len(needed), max(needed, default=0), dtype=torch.int32)
    for row, count in zip(table, needed, strict=True):
        row[:count] = torch.tensor(free[:count], dtype=torch.int32)
        free = free[count:]
    return table


def block_table_figure(
    context_lens: Sequence[int], block_table: torch.Tensor, block_size: int, num_blocks: int
) -> go.Figure:
    """Above: each sequence, block by block, with the number of its physical block. Below: the memory.

    The coloured part of a block is used, the grey part of a last block is wasted.
    """
    needed, owner, drawn = blocks_needed(context_lens, block_size), {}, Drawn()
    for i, (length, count) in enumerate(zip(context_lens, needed, strict=True)):
        drawn.label(-i, f"sequence {i}")
        for j in range(count):
            block = int(block_table[i, j])
            owner[block] = (COLOURS[i % len(COLOURS)], min(length - j * block_size, block_size) / block_size)
            drawn.block(j, -i, block, *owner[block])
    top, columns = len(needed) + 0.7, max(LEAST_COLUMNS, *needed)
    drawn.label(-top, "memory")
    for block in range(num_blocks):
        drawn.block(block % columns, -top - block // columns, block, *owner.get(block, ("", 0.0)))
    fig = figure(title=_title(context_lens, block_size), showlegend=False, margin_t=50)
    rows = top + -(-num_blocks // columns)
    # All at once: plotly looks at every shape again whenever one is added.
    fig.update_layout(height=int(70 + 44 * rows), shapes=drawn.shapes, annotations=drawn.texts)
    fig.update_xaxes(visible=False, range=[-0.2 * columns, columns + 0.1])
    return fig.update_yaxes(visible=False, range=[-rows + 0.2, 0.7])


class Drawn:
    """Shapes and texts of a picture, gathered before plotly sees them."""

    def __init__(self):
        self.shapes: list[dict] = []
        self.texts: list[dict] = []

    def label(self, y: float, text: str):
        """A line's name, at its left."""
        self.texts.append({"x": -0.15, "y": y, "text": text, "showarrow": False, "xanchor": "right"})

    def block(self, x: float, y: float, number: int, colour: str, used: float):
        """One block: its used part in colour, the rest grey; only an outline where nobody has it."""
        box = {"y0": y - 0.36, "y1": y + 0.36, "x0": x}
        edge = {"line": {"color": IDLE, "width": 1}}
        self.shapes.append(box | edge | {"x1": x + WIDTH, "fillcolor": UNUSED if used else shade(IDLE, 0.0)})
        if used:
            fill = {"line": {"width": 0}, "fillcolor": shade(colour, 0.75)}
            self.shapes.append(box | fill | {"x1": x + used * WIDTH})
        place = {"x": x + WIDTH / 2, "y": y, "showarrow": False}
        self.texts.append(place | {"text": str(number), "font": {"color": "black" if used else TEXT}})


def _title(context_lens: Sequence[int], block_size: int) -> str:
    wasted, needed = wasted_slots(context_lens, block_size), sum(blocks_needed(context_lens, block_size))
    share = wasted / (needed * block_size) if needed else 0.0
    return f"blocks of {block_size}: {wasted} of {needed * block_size} slots hold nothing ({share:.0%})"


def block_table_picture(
    context_lens: Sequence[int], *, slots: int = 384, sizes=(4, 8, 16, 32), start: int = 16
):
    """Shows the picture for a memory of `slots` tokens; the slider chooses the block size."""

    def draw(block_size: int) -> go.Figure:
        table = scattered_table(context_lens, block_size, slots // block_size)
        return block_table_figure(context_lens, table, block_size, slots // block_size)

    interact(
        draw,
        caption="each sequence is one line above; below, its blocks lie wherever there was room",
        block_size=ipywidgets.SelectionSlider(options=list(sizes), value=start, description="block size"),
    )
