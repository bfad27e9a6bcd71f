"""A pool of processes, some of which are killed or stopped while requests run."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import httpx
import pytest
from disaggregation_pool import (
    QUICK,
    SIZES,
    SLOW,
    answer,
    case,
    cases,
    check_all_free,
    check_answers,
    folder,
    kill,
    pid_of,
    processes,
    run,
)
from waiting import wait_for

from minitransformer.disaggregation import DisaggregatedLLM
from minitransformer.disaggregation.llm import CannotStart

LONG = [case(i, 60, 5 + i, 25) for i in range(8)]


@pytest.fixture(scope="module")
def pool():
    """2P2D over a slow link. A test that ends a worker begins another."""
    with processes(2, 2, link=SLOW) as llm:
        yield llm


def some_stream(got: dict[int, list[int]]) -> bool:
    return any(len(tokens) > 3 for tokens in got.values())


def first_token_is_there(got: dict[int, list[int]]) -> bool:
    """Its transfer, over SLOW, has not ended yet."""
    return any(len(tokens) == 1 for tokens in got.values())


def at_once(got: dict[int, list[int]]) -> bool:
    """Before any prompt has been computed."""
    return True


def test_a_pool_of_processes_answers_as_one_engine_does(pool):
    check_answers(run(pool, cases(12)), cases(12))
    check_all_free(pool)
    assert [worker.kind for worker in sorted(pool.workers(), key=lambda w: w.kind)] == ["decode"] * 2 + [
        "prefill"
    ] * 2


@pytest.mark.parametrize("when", [at_once, first_token_is_there, some_stream])
def test_a_prefill_worker_is_killed(pool, when):
    check_answers(run(pool, LONG, when, lambda: kill(pid_of(pool, "prefill")[1])), LONG)
    pool.add_worker("prefill")
    check_all_free(pool)


@pytest.mark.parametrize("when", [first_token_is_there, some_stream])
def test_a_decode_worker_is_killed(pool, when):
    check_answers(run(pool, LONG, when, lambda: kill(pid_of(pool, "decode")[1])), LONG)
    pool.add_worker("decode")
    check_all_free(pool)


@pytest.mark.parametrize("kind", ["prefill", "decode"])
def test_a_worker_hangs_without_dying_and_comes_back(pool, kind):
    stopped = []

    def stop():
        stopped.append(pid_of(pool, kind))
        os.kill(stopped[0][1], signal.SIGSTOP)

    try:
        check_answers(run(pool, LONG, some_stream, stop), LONG)
        wait_for(lambda: pool.engine.tend(0.05) or len(pool.workers()) == 3)
    finally:
        os.kill(stopped[0][1], signal.SIGCONT)
    wait_for(lambda: pool.engine.tend(0.05) or len(pool.workers()) == 4)
    check_answers(run(pool, LONG[:4]), LONG[:4])
    check_all_free(pool)


def test_the_router_is_killed_and_begun_again(pool):
    router = pool._supervisor.router.popen.pid
    check_answers(run(pool, LONG, some_stream, lambda: kill(router)), LONG)
    assert pool._supervisor.router.popen.pid != router
    wait_for(lambda: pool.engine.tend(0.05) or len(pool.workers()) == 4)
    check_all_free(pool)


def test_the_router_is_killed_while_nothing_runs(pool):
    kill(pool._supervisor.router.popen.pid)
    check_answers(run(pool, cases(4)), cases(4))
    wait_for(lambda: pool.engine.tend(0.05) or len(pool.workers()) == 4)
    check_all_free(pool)


@pytest.mark.parametrize("kind", ["prefill", "decode"])
def test_a_worker_that_is_slow_by_ten_times_loses_nothing(pool, kind):
    with slowed(pid_of(pool, kind)[1]):
        check_answers(run(pool, LONG), LONG)
    check_all_free(pool)


@contextmanager
def slowed(pid: int):
    """The process runs a tenth of the time."""
    ends = threading.Event()

    def throttle():
        while not ends.is_set():
            os.kill(pid, signal.SIGSTOP)
            time.sleep(0.045)
            os.kill(pid, signal.SIGCONT)
            time.sleep(0.005)

    thread = threading.Thread(target=throttle)
    thread.start()
    try:
        yield
    finally:
        ends.set()
        thread.join()


def test_workers_join_and_leave_as_processes(pool):
    name = pool.add_worker("decode")
    (removed, pid) = pid_of(pool, "decode")
    check_answers(run(pool, LONG, some_stream, lambda: pool.remove_worker(removed)), LONG)
    wait_for(lambda: pool.engine.tend(0.05) or removed not in [w.name for w in pool.workers()])
    wait_for(lambda: pool._supervisor.workers[removed].has_ended)
    assert name in [w.name for w in pool.workers()] and removed != name and pid
    check_all_free(pool)


def test_the_server_of_serving_fronts_it_unchanged(pool):
    import uvicorn

    from minitransformer.serving.http.app import create_app
    from minitransformer.serving.http.server import listen

    with listen("127.0.0.1", 0) as listening:
        app = create_app(pool, "small")
        server = uvicorn.Server(uvicorn.Config(app, lifespan="on", log_level="warning", access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            one = case(0, 40, 5, 12)
            body = {"model": "small", "prompt": list(one.prompt), "max_tokens": 12, "temperature": 0}
            with httpx.stream(
                "POST", f"{url}/v1/completions", json=body | {"stream": True, "n": 2}
            ) as streamed:
                lines = [line for line in streamed.iter_lines() if line]
            reason = "length" if len(answer(one)) == 12 else "stop"
            assert lines[-1] == "data: [DONE]"
            assert sum(f'"finish_reason":"{reason}"' in line for line in lines) == 2
            metrics = httpx.get(f"{url}/metrics").text
            for stage in ("queued", "prefill", "transfer", "first_token", "decode"):
                assert f'request_stage_seconds_count{{stage="{stage}"}} 2.0' in metrics
            assert "minitransformer_cache_blocks 120.0" in metrics
        finally:
            server.should_exit = True
            thread.join(30)
    assert not thread.is_alive()
    check_all_free(pool)


def test_the_secret_is_on_no_command_line(pool):
    secret = pool._supervisor.secret.encode()
    for worker in pool.workers():
        with open(f"/proc/{worker.pid}/cmdline", "rb") as cmdline:
            assert secret not in cmdline.read()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"decode_options": {"model": "no/such/folder"}}, CannotStart, "no/such/folder"),
        ({"num_blocks": 0}, CannotStart, "num_blocks=0"),
        ({"decode_workers": 0}, ValueError, "decode_workers >= 1"),
        ({"path": "no/such/folder"}, FileNotFoundError, "no/such/folder"),
    ],
)
def test_what_cannot_begin_says_why_and_leaves_nothing(options, error, words):
    options = {"path": folder(), "prefill_workers": 0, "liveness": QUICK} | SIZES | options
    others = children()
    with pytest.raises(error, match=words):
        DisaggregatedLLM(options.pop("path"), **options)
    assert children() == others


def children() -> set[str]:
    """This process' children that are workers or routers."""
    listed = subprocess.run(
        ["ps", "--ppid", str(os.getpid()), "-o", "pid=,args="], capture_output=True, text=True, check=False
    )
    return {line.split()[0] for line in listed.stdout.splitlines() if "disaggregation.process" in line}


def test_a_pool_ends_with_the_process_that_began_it(tmp_path):
    script = tmp_path / "begins.py"
    script.write_text(
        "import sys, time\n"
        "from minitransformer.disaggregation import DisaggregatedLLM\n"
        f"llm = DisaggregatedLLM({folder()!r}, prefill_workers=0, num_blocks=20, num_threads=1)\n"
        "print(*[w.pid for w in llm.workers()], llm._supervisor.router.popen.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    try:
        pids = process.stdout.readline().split()
        assert len(pids) == 2 and all(os.path.exists(f"/proc/{pid}") for pid in pids)
    finally:
        process.kill()
        process.wait()
    wait_for(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), 10)


def test_generate_of_a_pool_is_that_of_an_engine(pool):
    asked = cases(5)
    outputs = pool.generate([list(one.prompt) for one in asked], [one.sampling for one in asked])
    assert [output.token_ids for output in outputs] == [answer(one) for one in asked]
