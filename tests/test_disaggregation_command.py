"""python -m minitransformer.disaggregation, alone and under torchrun."""

import os
import re
import signal
import subprocess
import sys

import httpx
import pytest
from disaggregation_pool import MODEL, TOKENIZER, folder
from waiting import wait_for

from minitransformer import SamplingParams, stream_text
from minitransformer.disaggregation import __main__ as command
from minitransformer.disaggregation.ranks import run_rank, shared_secret

COMMAND = ["-m", "minitransformer.disaggregation", "--model", folder(), "--name", "small", "--port", "0"]
PROMPT = "a wise bear lived in a house, and"
SMALL = ["--num-threads", "1", "--num-blocks", "60", "--block-size", "4", "--local-below", "4"]


def start(*arguments: str) -> tuple[subprocess.Popen, str]:
    """A command that serves, and its address."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,  # Ctrl-C comes to a whole group
    )
    said = ""
    while line := process.stdout.readline():
        said += line
        if found := re.search(r"http://(127\.0\.0\.1):\d+", line):
            return process, found[0]
    raise AssertionError(said)


def interrupt(process: subprocess.Popen) -> str:
    """Ctrl-C; what was said from then on."""
    os.killpg(process.pid, signal.SIGINT)
    return process.communicate(timeout=30)[0]


def ask(url: str):
    """The server's answer is that of `stream_text` alone."""
    body = {"model": "small", "prompt": PROMPT, "max_tokens": 12, "temperature": 0}
    answered = httpx.post(f"{url}/v1/completions", json=body, timeout=30).json()
    alone = "".join(stream_text(MODEL, TOKENIZER, PROMPT, SamplingParams(max_tokens=12)))
    assert answered["choices"][0]["text"] == alone


def test_alone_it_begins_the_pool_and_ends_it_on_ctrl_c():
    process, url = start(*COMMAND, *SMALL)
    try:
        ask(url)
        said = interrupt(process)
        assert process.returncode == 0 and "Traceback" not in said
    finally:
        process.kill()


def test_under_torchrun_each_rank_is_a_worker_and_ends_with_it():
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
    process, url = start(*torchrun, *COMMAND, *SMALL, "--prefill", "2")
    try:
        ask(url)
        metrics = httpx.get(f"{url}/metrics").text
        assert 'request_stage_seconds_count{stage="transfer"} 1.0' in metrics
        assert "minitransformer_cache_blocks 60.0" in metrics  # one decode worker
    finally:
        process.kill()  # torchrun alone, and without a word to its ranks
        process.wait()
    wait_for(lambda: folder() not in everything_that_runs())


def everything_that_runs() -> str:
    """The command lines of all processes."""
    return subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout


def test_ranks_and_workers_must_be_as_many(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="1 prefill and 1 decode workers, but 3 ranks"):
        run_rank(command.parser().parse_args([]))


def test_several_machines_must_be_given_a_secret(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="must be given the same secret"), shared_secret(None, None, True):
        pass
    (tmp_path / "secret").write_text("of this run\n")
    with shared_secret(None, str(tmp_path / "secret"), True) as secret:
        assert secret == "of this run"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "no/such/folder"], "no/such/folder"),
        (["--decode", "0"], "decode_workers >= 1"),
        (["--link-gbps", "0"], "a link needs gbps > 0"),
    ],
)
def test_what_cannot_begin_says_why_in_one_line(capsys, arguments, words):
    assert command.main(["--model", folder(), "--prefill", "0", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and words in said and said.count("\n") == 1
