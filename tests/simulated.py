"""Small clusters and loads that the tests of the simulator share."""

import numpy as np

from minitransformer import ModelConfig
from minitransformer.roofline import Device
from minitransformer.simulate import Efficiency, Link, Load, Replica, Report

MODEL = ModelConfig(
    vocab_size=1000,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=4096,
)
CHIP = Device("chip", {"bf16": 1e11}, 1e9, 1e8, price_per_hour=2.0, watts=100.0)
LINK = Link(1e8, 1e-4)
TIMES = ("arrival_s", "started_s", "first_token_s", "decode_s", "last_token_s")


def replica(**fields) -> Replica:
    """A small model on a slow chip, whose steps take about a millisecond."""
    defaults = {"efficiency": Efficiency(0.5, 0.8, step_s=2e-4), "max_num_batched_tokens": 64}
    defaults |= {"max_num_seqs": 8, "block_size": 4, "num_blocks": 200}
    return Replica(MODEL, CHIP, **(defaults | fields))


def load(time_s, prompt, output, session=None, after=None) -> Load:
    """Requests by hand; a single number is one for all."""
    count = len(time_s)

    def column(given, default=None):
        return np.full(count, default if given is None else given) if np.ndim(given) == 0 else np.array(given)

    return Load(
        np.array(time_s, float), column(after, -1), column(prompt), column(output), column(session, -1)
    )


def assert_same(one: Report, other: Report):
    """All that happened is equal to the bit."""
    for name in (*TIMES, "cached_tokens", "preemptions", "restarts"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    assert one.steps == other.steps and one.bytes_sent == other.bytes_sent
    assert one.timeline == other.timeline and one.busy_s == other.busy_s
