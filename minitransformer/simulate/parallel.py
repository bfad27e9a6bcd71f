"""A sweep over all cores, with a progress bar."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def in_parallel(
    function: Callable, arguments: Sequence, processes: int | None = None, progress: bool = True
) -> Iterator:
    """function(argument) of each, in their order, computed side by side (None: on all cores).

    Whoever stops asking stops the work. What a process is given and gives back must be picklable.
    """
    processes = min(processes or os.cpu_count() or 1, len(arguments))
    columns = (TextColumn("simulating"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not progress, transient=True) as bar:
        if processes <= 1:
            yield from bar.track(map(function, arguments), total=len(arguments))
            return
        # New interpreters: a copy of this one would also copy locks that its threads hold.
        pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"))
        try:
            yield from bar.track(pool.map(function, arguments), total=len(arguments))
        finally:
            pool.shutdown(cancel_futures=True)
