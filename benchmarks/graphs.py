"""Timing what a GPU does, without the time that Python takes to ask for it.

A kernel of 50 microseconds is done before Python has launched the next one, and a wrapper that launches two
waits for Python in between. Captured in a CUDA graph, the launches of a call are one request. What a call
costs in Python is real, but it is that of a model's step, measured as such (the item "phases").
"""

from collections.abc import Callable

import torch


def captured(run: Callable, device: torch.device) -> Callable:
    """The same work as one CUDA graph, ready to be replayed; on a CPU, `run` itself.

    The inputs of `run` must stay where they are. It runs twice before: the first call compiles and tunes.
    """
    if device.type != "cuda":
        return run
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(2):
            run()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay
