"""The serving engine, measured: policies and the transformers library on one load of mixed requests.

    python -m benchmarks.serving [--rounds 2] [--json FILE]

128 requests, prompts of 16 to 512 tokens and answers of 16 to 256, all at once and then as they come at
random (Poisson), go through each policy of the engine, and through the transformers library with static
batching, on the same random weights of a 9M-parameter model. All ways run in turns. The rate of the
random arrivals is a share of what the engine reached when all came at once.
"""

import argparse
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from benchmarks import opponent, serving_report
from benchmarks.report import about, console, write_json
from benchmarks.serving_load import Ask, Lengths, at_random, mixed_load
from benchmarks.serving_waiting import COUNTS, RUNNING, time_against_waiting
from benchmarks.serving_ways import Served, serve_ours, serve_theirs
from benchmarks.turns import Ratio, in_turns
from minitransformer import ModelConfig, Transformer
from minitransformer.roofline.measure import device_name
from minitransformer.serving.scheduler import POLICIES

MODEL = ModelConfig(  # 9M parameters: on two cores each way takes half a minute to a minute
    vocab_size=8_000,
    hidden_size=256,
    intermediate_size=768,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=1024,
)
CPU = torch.device("cpu")
THEIRS = "transformers"


@dataclass(frozen=True)
class Sizes:
    """How large a measurement is.

    budgets          new tokens a step computes at most: whole prompts, where a policy has no use for less
    most_seqs        requests that run at once at most, whatever the policy
    rows_of_memory   the cache has the room of so many of the longest requests, padded
    their_batches    batch sizes to try for the transformers library, which then gets its fastest
    load_share       random arrivals come at this share of the engine's requests per second
    shared           tokens that all prompts begin with where sharing is measured
    """

    requests: int = 128
    lengths: Lengths = field(default_factory=Lengths)
    rounds: int = 2
    budgets: dict[str, int] = field(
        default_factory=lambda: {"static": 2048, "prefill_first": 2048, "chunked": 128}
    )
    most_seqs: int = 128
    block_size: int = 16
    rows_of_memory: int = 32
    their_batches: tuple[int, ...] = (8, 16, 32)
    load_share: float = 0.85
    shared: int = 256
    shared_requests: int = 64
    shared_lengths: Lengths = field(default_factory=lambda: Lengths((16, 64), (16, 32)))
    waiting: tuple[int, ...] = COUNTS
    running: int = RUNNING
    steps: int = 40

    def engine(self, policy: str = "chunked") -> dict:
        """What an LLM of this measurement is made with."""
        longest = self.lengths.prompt[1] + self.lengths.answer[1]
        num_blocks = self.rows_of_memory * -(-longest // self.block_size)
        return {
            "num_blocks": num_blocks,
            "block_size": self.block_size,
            "max_num_batched_tokens": self.budgets[policy],
            "max_num_seqs": self.most_seqs,
            "scheduling": policy,
        }


def measure(config: ModelConfig = MODEL, sizes: Sizes = Sizes(), seed: int = 0) -> dict:
    """All figures of serving on this machine. Raises opponent.Missing without the transformers library."""
    ours, theirs = opponent.make_pair(config, torch.float32, seed)
    load = mixed_load(sizes.requests, sizes.lengths, config.vocab_size, seed)
    with console.status("serving: warm-up, and the batch size that suits transformers"):
        serve_ours(ours, load[:4], **sizes.engine())
        batch_size = fastest_batch(theirs, load, sizes.their_batches)
    ways = _ways(ours, theirs, batch_size, sizes)
    with console.status("serving: all at once"):
        together = compare(ways, load, sizes.rounds)
    requests_per_s = sizes.load_share * sizes.requests / together["chunked"]["seconds"]
    with console.status(f"serving: {requests_per_s:.2g} requests a second"):
        poisson = compare(ways, at_random(load, requests_per_s, seed), sizes.rounds)
    with console.status("serving: a shared prefix, and many waiting"):
        prefix = shared_prefix(ours, sizes, seed)
        waiting = time_against_waiting(ours, sizes.waiting, sizes.steps, sizes.running)
    return {
        "model": {"parameters": config.num_parameters, "dtype": "float32"},
        "sizes": asdict(sizes),
        "their batch size": batch_size,
        "requests per second at random": requests_per_s,
        "all at once": together,
        "at random": poisson,
        "shared prefix": prefix,
        "waiting": waiting,
    }


def fastest_batch(theirs, load: list[Ask], batch_sizes: tuple[int, ...]) -> int:
    """The size at which the transformers library gets most tokens a second out of its static batches."""
    if len(batch_sizes) == 1:
        return batch_sizes[0]
    some = load[: max(batch_sizes)]
    opponent.run_theirs(theirs, torch.tensor([some[0].prompt]), 4)  # warm up
    return max(batch_sizes, key=lambda size: serve_theirs(theirs, some, size).trace.tokens_per_s)


def _ways(ours: Transformer, theirs, batch_size: int, sizes: Sizes) -> dict[str, Callable]:
    ways: dict[str, Callable] = {
        policy: lambda load, p=policy: serve_ours(ours, load, **sizes.engine(p)) for policy in POLICIES
    }
    return {THEIRS: lambda load: serve_theirs(theirs, load, batch_size)} | ways


def compare(ways: dict[str, Callable], load: list[Ask], rounds: int) -> dict:
    """Each way's figures over the rounds, and what it does against the transformers library."""
    runs = in_turns({name: lambda way=way: way(load) for name, way in ways.items()}, rounds)
    return {name: figures(found, runs[THEIRS]) for name, found in runs.items()}


def figures(runs: list[Served], theirs: list[Served]) -> dict:
    """Medians over the rounds of one way; its speed as pairwise ratios to that of `theirs`."""
    each = [run.trace.figures() for run in runs]
    found = {name: statistics.median(one[name] for one in each) for name in each[0]}
    speeds = [[run.trace.tokens_per_s for run in side] for side in (runs, theirs)]
    pairs = zip(runs[0].answers, theirs[0].answers, strict=True)
    return found | {
        "seconds": statistics.median(max(t[-1] for t in run.trace.token_s) for run in runs),
        "times as fast": asdict(Ratio.of(*speeds)),
        "rounds": {name: [one[name] for one in each] for name in each[0]},
        "cache lost": statistics.median(run.lost for run in runs),
        "equal answers": statistics.mean(a == b for a, b in pairs),
        "parts": _parts(runs),
    }


def _parts(runs: list[Served]) -> dict | None:
    """Median share of a step's time that each part takes, and the step's own mean time in seconds."""
    if runs[0].seconds is None:
        return None
    return {
        part: statistics.median(run.seconds[part] / run.seconds["step"] for run in runs)
        for part in runs[0].seconds
        if part != "step"
    }


def shared_prefix(model: Transformer, sizes: Sizes, seed: int) -> dict:
    """A load whose prompts begin alike, with and without the prefix cache, in turns."""
    load = mixed_load(
        sizes.shared_requests, sizes.shared_lengths, model.config.vocab_size, seed, sizes.shared
    )
    ways = {
        name: lambda on=on: serve_ours(model, load, prefix_caching=on, **sizes.engine())
        for name, on in (("cached", True), ("computed", False))
    }
    runs = in_turns(ways, sizes.rounds)
    tokens = sum(len(ask.prompt) for ask in load)
    whole_blocks = sizes.shared // sizes.block_size * sizes.block_size
    speeds = [[run.trace.tokens_per_s for run in runs[name]] for name in ways]
    first = [[run.trace.figures()["TTFT p50, s"] for run in runs[name]] for name in reversed(ways)]
    return {
        "shared tokens": sizes.shared,
        "hit rate": statistics.median(run.hit_rate for run in runs["cached"]),
        "at most": (len(load) - 1) * whole_blocks / tokens,
        "times as fast": asdict(Ratio.of(*speeds)),
        "TTFT shorter by": asdict(Ratio.of(*first)),
    }


def main(arguments: list[str] | None = None, config: ModelConfig = MODEL, sizes: Sizes = Sizes()) -> int:
    """The command line: measures, prints the tables, writes the file."""
    parser = argparse.ArgumentParser(prog="benchmarks.serving", description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=sizes.requests)
    parser.add_argument("--rounds", type=int, default=sizes.rounds)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(arguments)
    torch.set_grad_enabled(False)
    sizes = Sizes(**vars(sizes) | {"requests": options.requests, "rounds": options.rounds})
    try:
        found = measure(config, sizes)
    except opponent.Missing as missing:
        console.print(f"[red]{missing}[/red]")
        return 1
    serving_report.show(found)
    if options.json:
        record = about("cpu", device_name(CPU), "benchmarks.serving")
        write_json(options.json, record | {"threads": torch.get_num_threads(), "serving": found})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
