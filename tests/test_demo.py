"""`make demo`: the answer is the model's own, token by token; the phases are told apart; errors are words."""

import itertools
import subprocess
import sys

import pytest
import tokenizers
import torch
from jupyter_lab import ROOT
from small_models import small_model

from minitransformer import load_pretrained, save_pretrained
from minitransformer.course import demo
from minitransformer.generate import SamplingParams, generate
from minitransformer.tokenizer import Tokenizer

WINDOW = 1024


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A model that knows nothing, with bytes for tokens: its text is full of broken characters."""
    folder = tmp_path_factory.mktemp("checkpoint")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    tokenizer = Tokenizer(backend)
    save_pretrained(small_model(vocab_size=256, max_position_embeddings=WINDOW), folder, tokenizer)
    return str(folder)


def printed(capsys, *arguments: str) -> str:
    demo.main([*arguments])
    return capsys.readouterr().out


def test_prints_the_models_own_answer_behind_the_prompt(checkpoint, capsys):
    out = printed(capsys, "--model", checkpoint, "--prompt", "Once", "--max-tokens", "40")
    model, tokenizer = load_pretrained(checkpoint)
    ids = tokenizer.encode("Once")
    whole = generate(model, torch.tensor([ids]), 40, stop_ids=tokenizer.stop_ids)[0].tolist()
    assert f"Once{tokenizer.decode(whole[len(ids) :])}\n\nprefill" in out


def test_text_comes_before_the_answer_is_complete(checkpoint):
    model, tokenizer = load_pretrained(checkpoint)
    seen = []
    ids = tokenizer.encode("Once there was")
    demo.answer(model, tokenizer, ids, SamplingParams(max_tokens=30, temperature=1, seed=0), seen.append)
    assert len(seen) > 5


def test_the_same_seed_gives_the_same_answer(checkpoint, capsys):
    def story(seed):
        options = ("--model", checkpoint, "--temperature", "1", "--max-tokens", "20", "--seed", str(seed))
        return printed(capsys, *options).split("\n\n")[1]

    assert story(1) == story(1) != story(2)


def test_reports_both_phases_apart():
    timing = demo.Timing(prompt_tokens=10, started=2.0, stamps=[2.5, 2.6, 2.7])
    prefill, decode = (" ".join(line.split()) for line in demo.report(timing).splitlines())
    assert prefill == "prefill 10 tokens read in 500 ms 20 tokens/s TTFT 500 ms"
    assert decode == "decode 2 tokens written in 200 ms 10 tokens/s TPOT 100 ms"


def test_a_single_token_has_no_time_per_output_token():
    timing = demo.Timing(prompt_tokens=10, started=2.0, stamps=[2.5])
    assert timing.tpot is None
    assert "decode" not in demo.report(timing)


def test_every_token_is_stamped(checkpoint):
    model, tokenizer = load_pretrained(checkpoint)
    timing = demo.answer(model, tokenizer, [5, 6, 7], SamplingParams(max_tokens=9), lambda text: None)
    assert timing.prompt_tokens == 3
    assert len(timing.stamps) == 9
    assert timing.started < timing.stamps[0]
    assert all(a < b for a, b in itertools.pairwise(timing.stamps))


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--prompt", ""], "prompt is empty"),
        (["--prompt", " \n"], "prompt is empty"),
        (["--prompt", "bear " * 300], "window holds 1,024"),
        (["--max-tokens", "0"], "max_tokens must be at least 1"),
        (["--temperature", "-1"], "temperature must be 0 or above"),
        (["--device", "toaster"], "Device 'toaster'"),
        (["--model", "no/such/folder"], "no checkpoint"),
    ],
)
def test_what_can_not_be_done_is_said_in_one_line(checkpoint, arguments, words):
    with pytest.raises(SystemExit) as exit:
        demo.main(["--model", checkpoint, *arguments])
    assert words in exit.value.code
    assert "\n" not in exit.value.code


def test_a_prompt_that_fills_the_window_but_for_one_token_is_answered(checkpoint, capsys):
    prompt = "b" * (WINDOW - 1)
    assert "1,023 tokens read" in printed(capsys, "--model", checkpoint, "--prompt", prompt)


def test_a_prompt_that_is_no_utf8_is_read_all_the_same(checkpoint, capsys):
    assert "tokens read" in printed(
        capsys, "--model", checkpoint, "--prompt", b"caf\xe9".decode("utf-8", "surrogateescape")
    )


def test_ctrl_c_ends_the_answer_and_reports_what_came(checkpoint):
    model, tokenizer = load_pretrained(checkpoint)
    seen = []

    def write(text):
        seen.append(text)
        if len(seen) == 3:
            raise KeyboardInterrupt

    timing = demo.answer(model, tokenizer, [5], SamplingParams(max_tokens=50, temperature=1, seed=0), write)
    assert 3 <= len(timing.stamps) < 50
    assert seen[-1] == " [stopped]"


# The program, with Ctrl-C's signal at a certain token: a signal from here might come after the last one.
INTERRUPTED = """
import os, signal
from minitransformer.course import demo

stamp = demo.Timing.stamp
def stamp_and_interrupt(timing, token):
    stamp(timing, token)
    if len(timing.stamps) == 7:
        os.kill(os.getpid(), signal.SIGINT)
demo.Timing.stamp = stamp_and_interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background would pass on "ignore"
demo.main()
"""


def test_ctrl_c_in_a_terminal_leaves_no_traceback(checkpoint):
    command = [sys.executable, "-c", INTERRUPTED, "--model", checkpoint, "--max-tokens", "900"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert demo.PROMPT in done.stdout and "[stopped]\n\nprefill" in done.stdout
    assert "decode       6 tokens written" in done.stdout


def test_the_bundled_model_goes_on_with_the_story_that_it_was_given(capsys):
    answer = printed(capsys, "--max-tokens", "60").split("\n\n")[1].removeprefix(demo.PROMPT)
    assert "Paul" in answer
    assert answer.rstrip().endswith((".", "!", "?")) or len(answer) > 100
