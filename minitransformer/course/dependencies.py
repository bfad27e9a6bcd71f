"""How many operations must wait for one another: the longest chain in what a computation did.

A stopwatch mixes this with the size of the machine. The chain belongs to the algorithm alone: no machine,
however wide, finishes before the chain's operations have run one after the other.
"""

import torch

MATMULS = ("AddmmBackward", "BaddbmmBackward", "BmmBackward", "MmBackward", "MvBackward", "DotBackward")


def longest_chain(output: torch.Tensor, kinds: tuple[str, ...] = MATMULS) -> int:
    """The most matrix products that lie on one path from the inputs to `output`.

    Reads the graph that autograd recorded, so `output` must come from something that requires gradients.
    Within one product the sum over its inner size is itself a tree of additions, log2(size) deep; it is
    not counted. Raises ValueError where nothing was recorded.
    """
    if output.grad_fn is None:
        raise ValueError("nothing was recorded: compute the output with gradients on")
    depth, open_nodes = {}, [output.grad_fn]
    while open_nodes:  # depth first, without recursion: the chains of interest are long
        node = open_nodes[-1]
        before = [parent for parent, _ in node.next_functions if parent is not None]
        waiting = [parent for parent in before if parent not in depth]
        if waiting:
            open_nodes += waiting
            continue
        counts = node.name().rstrip("0123456789") in kinds
        depth[node] = counts + max((depth[parent] for parent in before), default=0)
        open_nodes.pop()
    return depth[output.grad_fn]
