"""`make demo`: a model answers a prompt, token by token, and the two phases are timed apart.

Loading and a warm-up come first and are not timed. The clock starts when the prompt's tokens go to the
model, and every token is stamped when the host has it.
"""

import argparse
import sys
import time
from dataclasses import dataclass, field

import torch

from minitransformer.checkpoint import load_pretrained
from minitransformer.course.tables import number
from minitransformer.generate import SamplingParams, stream_text
from minitransformer.model import Transformer
from minitransformer.tokenizer import Tokenizer

PROMPT = "Once there was a wise bear named Paul. Paul lived near the old mill."
WARM_UP_TOKENS = 16  # of the prompt: enough to wake threads and caches, short enough for a large model
DIM, PLAIN = "\033[2m", "\033[0m"


class Refused(Exception):
    """The request can't be carried out; the message says why, to a person."""


@dataclass
class Timing:
    """When the tokens of one answer came, in seconds of one clock."""

    prompt_tokens: int
    started: float = field(default_factory=time.perf_counter)
    stamps: list[float] = field(default_factory=list)

    def stamp(self, _token: int):
        self.stamps.append(time.perf_counter())

    @property
    def ttft(self) -> float:
        """Time to first token: prefill, and the choice of one token."""
        return self.stamps[0] - self.started

    @property
    def decode_seconds(self) -> float:
        return self.stamps[-1] - self.stamps[0]

    @property
    def decode_steps(self) -> int:
        """Every token after the first took one step."""
        return len(self.stamps) - 1

    @property
    def tpot(self) -> float | None:
        """Time per output token after the first; None where there is no second one."""
        return self.decode_seconds / self.decode_steps if self.decode_steps else None


def report(timing: Timing) -> str:
    """Both phases, a line each; decode's line is left out when a single token came."""
    if not timing.stamps:
        return "no token came"
    phases = [("prefill", timing.prompt_tokens, "read", timing.ttft, "TTFT", timing.ttft)]
    if timing.tpot is not None:
        phases.append(("decode", timing.decode_steps, "written", timing.decode_seconds, "TPOT", timing.tpot))
    return "\n".join(
        f"{phase:8}{count:6,} tokens {verb:8} in {number(seconds, 's'):>9}"
        f"{count / seconds:12,.0f} tokens/s    {name} {number(value, 's')}"
        for phase, count, verb, seconds, name, value in phases
    )


def usable_device(name: str | None) -> torch.device:
    """The device asked for, else a GPU where there is one. Raises Refused for one that is not there."""
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch has either for a device that it lacks
        raise Refused(f"Device {name!r} can't be used: {str(error).splitlines()[0]}") from None


def encode(model: Transformer, tokenizer: Tokenizer | None, prompt: str) -> list[int]:
    """The prompt's token ids. Raises Refused where there is no tokenizer, or no room for an answer."""
    if tokenizer is None:
        raise Refused("This checkpoint has no tokenizer.json, so it can't read text.")
    # An argument that was no UTF-8 comes with surrogates, which no tokenizer takes.
    ids = tokenizer.encode(prompt.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))
    window = model.config.max_position_embeddings
    if len(ids) >= window:
        raise Refused(
            f"The prompt has {len(ids):,} tokens; the model's window holds {window:,}, answer included."
        )
    return ids


def answer(
    model: Transformer, tokenizer: Tokenizer, ids: list[int], sampling: SamplingParams, write
) -> Timing:
    """Hands the answer to `write` piece by piece. Ctrl-C ends the answer, not the program."""
    warm_up = stream_text(model, tokenizer, ids[:WARM_UP_TOKENS], SamplingParams(max_tokens=2))
    for _ in warm_up:
        pass
    timing = Timing(len(ids))
    try:
        for piece in stream_text(model, tokenizer, ids, sampling, on_token=timing.stamp):
            write(piece)
    except KeyboardInterrupt:
        write(" [stopped]")
    return timing


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m minitransformer.course.demo", description=__doc__)
    parser.add_argument("--prompt", default=PROMPT, help="what to answer (default: the beginning of a story)")
    parser.add_argument("--model", default="bundled", help="bundled, bundled-draft, a folder, or a hub id")
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="0 (default) takes the likeliest token"
    )
    parser.add_argument("--seed", type=int, help="the same seed gives the same answer")
    parser.add_argument(
        "--max-tokens", type=int, default=256, help="length of the answer at most (default 256)"
    )
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's choice)")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace):
    """Loads, answers, reports. Raises Refused, ValueError or OSError with a line for the user."""
    if not options.prompt.strip():
        raise Refused('The prompt is empty: give some text, as in make demo PROMPT="Once there was".')
    if options.threads is not None:
        torch.set_num_threads(max(options.threads, 1))
    model, tokenizer = load_pretrained(options.model, device=usable_device(options.device))
    ids = encode(model, tokenizer, options.prompt)
    room = model.config.max_position_embeddings - len(ids)
    sampling = SamplingParams(
        temperature=options.temperature, seed=options.seed, max_tokens=min(options.max_tokens, room)
    )
    count = torch.get_num_threads()
    threads = f", {count} thread{'s' * (count > 1)}" if model.device.type == "cpu" else ""
    size = f"{number(model.config.num_parameters)} parameters in {str(model.dtype).removeprefix('torch.')}"
    print(f"{options.model}: {size} on {model.device}{threads}\n")

    dim, plain = (DIM, PLAIN) if sys.stdout.isatty() else ("", "")
    write(f"{dim}{options.prompt}{plain}")
    timing = answer(model, tokenizer, ids, sampling, write)
    print(f"\n\n{report(timing)}")


def write(text: str):
    print(text, end="", flush=True)


def main(arguments: list[str] | None = None):
    sys.stdout.reconfigure(errors="replace")
    try:
        run(parse_arguments(arguments))
    except (Refused, ValueError, OSError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
