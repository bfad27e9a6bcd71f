"""Prefill on one host, decode on another: two network namespaces, joined by a link that a test can slow."""

import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from disaggregation_pool import MODEL, Case, answer, case, folder

from minitransformer.disaggregation.options import SECRET

HERE, THERE = "10.77.0.1", "10.77.0.2"
SPACES, LINKS = ("mt-host-1", "mt-host-2"), ("mt-link-1", "mt-link-2")
ROUTER_PORT, MEET_PORT = "7100", "7101"
BYTES_A_TOKEN = 2 * MODEL.config.num_hidden_layers * MODEL.config.kv_size * 8
BURST = 4096  # bytes that leave at once however slow the link is


def ip(*words: str) -> bool:
    return subprocess.run(["ip", *words], capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module")
def hosts():
    """Two namespaces with a link between them."""
    if shutil.which("ip") is None or not ip("netns", "add", SPACES[0]):
        pytest.skip("not verified: network namespaces are not permitted here")
    try:
        ip("netns", "add", SPACES[1])
        assert ip("link", "add", LINKS[0], "type", "veth", "peer", "name", LINKS[1])
        for space, link, address in zip(SPACES, LINKS, (HERE, THERE), strict=True):
            assert ip("link", "set", link, "netns", space)
            assert ip("-n", space, "addr", "add", f"{address}/24", "dev", link)
            assert ip("-n", space, "link", "set", link, "up") and ip("-n", space, "link", "set", "lo", "up")
        yield
    finally:
        for space in SPACES:
            ip("netns", "del", space)


def begin(space: str, *arguments: str, **environment: str) -> subprocess.Popen:
    """A Python process on one of the hosts."""
    return subprocess.Popen(
        ["ip", "netns", "exec", space, sys.executable, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {SECRET: "of this run", "OMP_NUM_THREADS": "1"} | environment,
    )


@pytest.fixture(scope="module")
def client(hosts):
    """1P1D, one on each host, begun as torchrun begins them; a client beside the prefill worker."""
    ranks = [
        begin(
            space,
            *("-m", "minitransformer.disaggregation", "--model", folder(), "--host", address),
            *("--router-port", ROUTER_PORT, "--num-blocks", "80", "--block-size", "4", "--num-threads", "1"),
            RANK=str(rank),
            WORLD_SIZE="2",
            LOCAL_WORLD_SIZE="1",
            MASTER_ADDR=HERE,
            MASTER_PORT=MEET_PORT,
        )
        for rank, (space, address) in enumerate(zip(SPACES, (HERE, THERE), strict=True))
    ]
    script = Path(__file__).parent / "two_hosts.py"
    try:
        assert ranks[0].stdout.readline() == f"The router listens at {HERE}:{ROUTER_PORT}\n"
        ranks.append(begin(SPACES[0], str(script), folder(), HERE, ROUTER_PORT))
        assert ranks[-1].stdout.readline() == "ready\n"
        yield ranks[-1]
    finally:
        for process in ranks:
            process.kill()
            process.wait()


def ask(client: subprocess.Popen, asked: list[Case], meanwhile=lambda: None) -> list[dict]:
    """What each request brings, with its tokens as `generate` gives them."""
    content = [(one.prompt, one.sampling.max_tokens, one.sampling.seed) for one in asked]
    client.stdin.write(json.dumps(content) + "\n")
    client.stdin.flush()
    assert client.stdout.readline() == "streaming\n"
    meanwhile()
    outputs = json.loads(client.stdout.readline())
    assert [output["token_ids"] for output in outputs] == [answer(one) for one in asked]
    return outputs


def test_two_hosts_answer_as_one_engine_does(client):
    outputs = ask(client, [case(i, 0, 20 + 9 * i, 8) for i in range(4)])
    assert all(output["stages"]["receiving"] > 0 for output in outputs)


def test_over_a_slow_link_the_transfer_is_what_one_waits_for(client):
    (fast,) = ask(client, [case(7, 0, 70, 8)])
    tc = ["ip", "netns", "exec", SPACES[0], "tc", "qdisc"]
    rate = ["tbf", "rate", "1mbit", "burst", str(BURST), "latency", "10s"]
    if subprocess.run(
        [*tc, "add", "dev", LINKS[0], "root", *rate], capture_output=True, check=False
    ).returncode:
        pytest.skip("not verified: tc can't slow a link here")
    try:
        (slow,) = ask(client, [case(8, 0, 70, 8)])
    finally:
        subprocess.run([*tc, "del", "dev", LINKS[0], "root"], check=True)
    least = (70 * BYTES_A_TOKEN - BURST) * 8 / 1e6  # seconds that the bytes need
    assert slow["stages"]["receiving"] >= least > fast["stages"]["receiving"]
    to_first = [sum(o["stages"][s] for s in ("queued", "prefill", "first_token")) for o in (fast, slow)]
    # The first token comes from the prefill worker's host: no transfer is in its time.
    assert slow["stages"]["transfer"] > least / 2 and to_first[1] < least


def test_a_link_that_is_down_for_a_while_loses_nothing(client):
    def cut():
        assert ip("-n", SPACES[0], "link", "set", LINKS[0], "down")
        time.sleep(5)  # beyond the time after which the workers are dead to each other
        assert not select.select([client.stdout], [], [], 0)[0], "all was answered before the cut"
        assert ip("-n", SPACES[0], "link", "set", LINKS[0], "up")

    ask(client, [case(10 + i, 0, 40 + i, 180) for i in range(4)], cut)
    ask(client, [case(20, 0, 40, 8)])
