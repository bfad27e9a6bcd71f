"""A ragged batch: the new tokens of many sequences, one behind another, without padding between them.

One sequence (a row) may bring a whole prompt, the next one a single token. Everything but attention looks
at one token at a time and takes the tokens as they lie; attention takes rows in groups of alike size.
The batch is all that a step needs to know of its sequences; it knows nothing of requests.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import torch

# Rows share a group when their sizes, up to a power of two, are equal; below these sizes all are alike,
# because a further group costs more than a little padding.
SMALLEST_QUERY, SMALLEST_CONTEXT = 16, 64
# More rows of one size than these are cut by context on a CPU: there padding costs more than a group does,
# and the copied keys of a few rows stay in its cache. A GPU takes them together, in one launch.
MOST_ROWS_ON_CPU = 8


@dataclass(frozen=True, eq=False)
class RowGroup:
    """P rows that attention pads to the T tokens and M blocks of the longest among them.

    tokens        [P, T]  where in the batch each query stands; padding repeats the row's last one
    positions     [P, T]  of these tokens in their sequences
    block_table   [P, M]  the blocks of each row's cached tokens; padding is block 0, which nobody looks at
    context_lens  [P]     cached tokens of each row, those of this step included
    window        how many last tokens a token sees (None: all before it)
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    block_table: torch.Tensor
    context_lens: torch.Tensor
    block_size: int
    window: int | None
    made: dict = field(default_factory=dict, repr=False)

    def once(self, name: str, make: Callable):
        """What `make` returns, made for the first layer of a step and kept for the others."""
        if name not in self.made:
            self.made[name] = make()
        return self.made[name]

    @property
    def mask(self) -> torch.Tensor:
        """True where a query may see a cached token: [P, T, M * block]."""
        last_seen = self.positions[..., None]
        s = torch.arange(self.block_table.shape[1] * self.block_size, device=last_seen.device)
        mask = s <= last_seen
        return mask if self.window is None else mask & (s > last_seen - self.window)


@dataclass(frozen=True, eq=False)
class RaggedBatch:
    """n new tokens of R rows.

    token_ids, positions  [n]  the tokens, row after row, and their positions in their sequences
    slots                 [n]  where in the paged cache their keys and values go
    last_tokens           [R]  where in the batch each row's last token stands
    groups                     the same rows as attention takes them
    unpad                 [n]  where each token's result stands in the padded results of all groups
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    last_tokens: torch.Tensor
    groups: tuple[RowGroup, ...]
    unpad: torch.Tensor

    @classmethod
    def build(
        cls,
        new_tokens: Sequence[Sequence[int]],
        starts: Sequence[int],
        block_tables: Sequence[Sequence[int]],
        *,
        block_size: int,
        window: int | None = None,
        split_singles: bool = True,
        device: torch.device | str = "cpu",
    ) -> "RaggedBatch":
        """Row r continues `starts[r]` cached tokens by `new_tokens[r]`; its blocks are `block_tables[r]`.

        `window` is the model's sliding window. Without `split_singles` all rows of one token form one
        group, which suits a kernel that pads nothing. Raises ValueError where a row brings no token or
        has too few blocks for all of its tokens.
        """
        counts = np.array([len(ids) for ids in new_tokens], dtype=np.int64)
        start = np.array(starts, dtype=np.int64)
        table_sizes = np.array([len(table) for table in block_tables], dtype=np.int64)
        _require_room(counts, start, table_sizes * block_size)
        table, first = _padded(block_tables, table_sizes), np.cumsum(counts) - counts
        row = np.repeat(np.arange(len(counts)), counts)  # [n]: the row of each token
        positions = np.arange(len(row)) - first[row] + start[row]
        slots = table[row, positions // block_size] * block_size + positions % block_size
        token_ids = np.fromiter(chain.from_iterable(new_tokens), np.int64, len(row))
        rows = _alike(counts, start + counts, split_singles)
        if split_singles and torch.device(device).type == "cpu":
            rows = _cut_by_context(rows, start + counts)
        groups, unpad = _grouped(rows, counts, first, positions, table, block_size)
        return cls(
            *(_tensor(array, device) for array in (token_ids, positions, slots, first + counts - 1)),
            groups=tuple(RowGroup(*(_tensor(a, device) for a in g), block_size, window) for g in groups),
            unpad=_tensor(unpad, device),
        )


def _grouped(groups_of_rows, counts, first, positions, table, block_size) -> tuple[list[tuple], np.ndarray]:
    """The arrays of each RowGroup, and where each token's result stands behind one another's padding."""
    context_lens = positions[first] + counts
    groups, unpad, padded = [], np.empty(len(positions), dtype=np.int64), 0
    for rows in groups_of_rows:
        t = np.arange(counts[rows].max())
        tokens = first[rows, None] + np.minimum(t, counts[rows, None] - 1)  # [P, T]
        is_token = t < counts[rows, None]
        unpad[tokens[is_token]] = padded + np.flatnonzero(is_token)
        padded += tokens.size
        num_blocks = -(-context_lens[rows].max() // block_size)
        groups.append((tokens, positions[tokens], table[rows, :num_blocks], context_lens[rows]))
    return groups, unpad


def _tensor(array: np.ndarray, device) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


def _require_room(counts, start, room):
    """Raises ValueError for a row that attention could not place."""
    if not len(counts) or not len(counts) == len(start) == len(room) or counts.min() < 1:
        raise ValueError(f"a batch is rows of one token or more, each with a start and blocks: {counts}")
    if (start < 0).any() or (start + counts > room).any():
        raise ValueError(f"rows of {start + counts} tokens in all have blocks for {room}")


def _padded(tables: Sequence[Sequence[int]], sizes: np.ndarray) -> np.ndarray:
    """Block tables of any length -> [R, longest], filled up with 0."""
    table = np.zeros((len(tables), sizes.max()), dtype=np.int64)
    table[np.arange(sizes.max()) < sizes[:, None]] = np.fromiter(chain.from_iterable(tables), np.int64)
    return table


def _alike(counts: np.ndarray, context_lens: np.ndarray, split_singles: bool) -> list[np.ndarray]:
    """Row numbers in groups: those with one token apart, the rest by the size of queries and context."""
    is_single = counts == 1
    width = np.where(is_single, 0, _power_of_two(counts, SMALLEST_QUERY))
    depth = np.where(is_single & (not split_singles), 0, _power_of_two(context_lens, SMALLEST_CONTEXT))
    size = width * 64 + depth
    return [np.flatnonzero(size == one) for one in np.unique(size)]


def _cut_by_context(groups: list[np.ndarray], context_lens: np.ndarray) -> list[np.ndarray]:
    """Groups of MOST_ROWS_ON_CPU rows at most, each with neighbours in size."""
    cut = []
    for rows in groups:
        rows = rows[np.argsort(context_lens[rows], kind="stable")]
        cut += np.array_split(rows, -(-len(rows) // MOST_ROWS_ON_CPU))
    return cut


def _power_of_two(sizes: np.ndarray, smallest: int) -> np.ndarray:
    return np.ceil(np.log2(np.maximum(sizes, smallest))).astype(np.int64)
