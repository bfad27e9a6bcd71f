"""python -m minitransformer.serving: how it begins, where it listens, how it ends."""

import os
import re
import signal
import socket
import subprocess
import sys

import httpx
import pytest

from minitransformer.serving import __main__ as command
from minitransformer.serving.http.server import is_loopback


def start(*arguments: str) -> tuple[subprocess.Popen, str]:
    """The server as its own process, and its address."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "minitransformer.serving",
            "--model",
            "bundled-draft",
            "--port",
            "0",
            *arguments,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    line = process.stdout.readline()
    found = re.search(r"http://(127\.0\.0\.1):\d+", line)
    assert found, line + process.stdout.read()
    return process, found[0]


def test_ctrl_c_answers_what_runs_to_its_end_and_then_ends_without_an_error():
    process, url = start()
    try:
        body = {"model": "bundled-draft", "prompt": "Once", "max_tokens": 240, "stream": True, "n": 8}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as answer:
            lines = answer.iter_lines()
            first = next(lines)
            process.send_signal(signal.SIGINT)
            rest = [line for line in lines if line]
        assert first.startswith("data: {") and rest[-1] == "data: [DONE]"
        assert sum('"finish_reason":"' in line for line in rest) == 8
        output = process.communicate(timeout=60)[0]
        assert process.returncode == 0 and "Traceback" not in output
    finally:
        process.kill()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "no/such/folder"], "no/such/folder"),
        (["--max-num-batched-tokens", "0"], "max_num_seqs=0 must be at least 1"),
        (["--block-size", "0"], "block_size must be at least 1, got 0"),
        (["--cache-gb", "0"], "a block of the KV cache takes"),
    ],
)
def test_what_cannot_begin_says_why_in_one_line(capsys, arguments, words):
    assert command.main(["--model", "bundled-draft", "--port", "0", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and words in said and said.count("\n") == 1


def test_a_port_that_is_taken_is_named(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert command.main(["--model", "bundled-draft", "--port", str(port)]) == 2
    assert f"port {port} at 127.0.0.1 can't be had" in capsys.readouterr().err


def test_it_listens_to_this_machine_alone_unless_told_otherwise():
    assert is_loopback(command.parser().parse_args([]).host)
    assert is_loopback("::1") and is_loopback("localhost")
    assert not is_loopback("0.0.0.0") and not is_loopback("example.org")


def test_the_cache_takes_the_memory_it_is_given():
    args = command.parser().parse_args(["--model", "bundled-draft", "--device", "cpu", "--cache-gb", "0.01"])
    cache = command.load(args).engine.cache
    assert 0.0099e9 < cache.nbytes <= 0.01e9


def test_a_model_is_called_by_its_id_or_its_folder(tmp_path):
    folder = tmp_path / "Qwen3-0.6B"
    folder.mkdir()
    assert command.name_of(f"{folder}/") == "Qwen3-0.6B"
    assert command.name_of("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
