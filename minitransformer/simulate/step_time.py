"""Seconds of an engine step, from what its rows add up to: the roofline's costs on a replica.

A step is two parts after each other, since each layer's attention waits for its linear layers and the
other way round: attention, and everything else. Each takes the longer of its arithmetic and its traffic.
All chips of a replica share both evenly; what they tell each other comes on top.
"""

import numpy as np

from minitransformer.roofline import ATTENTION, Cost, pass_operators
from minitransformer.simulate.cluster import Replica, act_bytes


class StepTime:
    """Seconds as a function of tokens, pairs, keys and sequences (as in `roofline.pass_operators`).

    Takes whole numbers or arrays of them. The same numbers give the same seconds to the bit either way:
    steps that are advanced together end when they would have ended one by one.
    """

    def __init__(self, replica: Replica):
        device, efficiency = replica.chips * replica.device, replica.efficiency
        flops = device.peak(replica.compute_dtype) * efficiency.flops
        bandwidth = device.bandwidth * efficiency.bandwidth
        base = _costs(replica, 0, 0, 0, 0)
        token, pair, key, logit = (
            tuple(_minus(one, none) for one, none in zip(_costs(replica, *unit), base, strict=True))
            for unit in np.eye(4, dtype=int).tolist()
        )
        rest, attention = 0, 1
        self._linear_flops = [cost[rest].flops / flops for cost in (base, token, logit)]
        self._linear_bytes = [cost[rest].bytes / bandwidth for cost in (base, token, logit)]
        self._pair_flops = pair[attention].flops / flops
        self._token_bytes = token[attention].bytes / bandwidth
        self._key_bytes = key[attention].bytes / bandwidth
        latency, talk = _talking(replica)
        self._step = efficiency.step_s + latency
        self._token, self._sequence = efficiency.token_s + talk, efficiency.sequence_s

    def __call__(self, tokens, pairs, keys, sequences):
        longer = np.maximum if isinstance(keys, np.ndarray) else max
        base, token, sequence = self._linear_flops
        arithmetic = base + token * tokens + sequence * sequences
        base, token, sequence = self._linear_bytes
        traffic = base + token * tokens + sequence * sequences
        attention = longer(self._pair_flops * pairs, self._token_bytes * tokens + self._key_bytes * keys)
        besides = self._step + self._token * tokens + self._sequence * sequences
        return besides + longer(arithmetic, traffic) + attention


def _costs(replica: Replica, tokens: int, pairs: int, keys: int, logits: int) -> tuple[Cost, Cost]:
    """Everything but attention, and attention, of one pass."""
    operators = pass_operators(
        replica.model, tokens, pairs, keys, logits, replica.dtype, cache_dtype=replica.cache_dtype
    )
    attention = sum((operators[name] for name in ATTENTION), Cost())
    rest = sum((cost for name, cost in operators.items() if name not in ATTENTION), Cost())
    return rest, attention


def _minus(one: Cost, none: Cost) -> Cost:
    return Cost(one.flops - none.flops, one.bytes - none.bytes)


def _talking(replica: Replica) -> tuple[float, float]:
    """Seconds a step, and a token, of the all-reduces: after attention and after the MLP, each layer."""
    if replica.chips == 1:
        return 0.0, 0.0
    nbytes = replica.model.hidden_size * act_bytes(replica)
    times = 2 * replica.model.num_hidden_layers
    latency, transfer = replica.link.all_reduce_s(nbytes, replica.chips)
    return times * latency, times * transfer
