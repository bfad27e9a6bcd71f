"""python -m minitransformer.disaggregation.process: one process of a pool, as a supervisor begins it.

The first line of standard input says in JSON what to be; the process ends when that input closes. The
run's secret is in the environment, where other users of the machine can't read it.
"""

import asyncio
import json
import logging
import os
import socket
import sys
import threading

from minitransformer.disaggregation.client import RemoteLLM
from minitransformer.disaggregation.decode_worker import DecodeWorker
from minitransformer.disaggregation.options import SECRET, Liveness, RouterOptions, WorkerOptions
from minitransformer.disaggregation.prefill_worker import PrefillWorker
from minitransformer.disaggregation.router_server import RouterServer
from minitransformer.disaggregation.worker import CannotServe
from minitransformer.serving.__main__ import name_of
from minitransformer.serving.http.app import create_app
from minitransformer.serving.http.server import serve


def main() -> int:
    """0 at the end; 1 where it can't begin or has no place in the pool, with the reason in one line."""
    logging.basicConfig(level=os.environ.get("MINITRANSFORMER_LOG", "WARNING"), format="%(message)s")
    content, secret = json.loads(sys.stdin.readline()), os.environ[SECRET].encode()
    threading.Thread(target=end_with_parent, name="parent", daemon=True).start()
    try:
        if content["role"] == "router":
            run_router(content, secret)
        elif content["role"] == "server":
            run_server(content, secret)
        else:
            run_worker(content["role"], WorkerOptions.of(content["options"]), secret)
    except (ValueError, OSError, CannotServe) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass
    return 0


def run_worker(kind: str, options: WorkerOptions, secret: bytes):
    """Raises ValueError, OSError or CannotServe."""
    {"prefill": PrefillWorker, "decode": DecodeWorker}[kind](options, secret).run()


def run_router(content: dict, secret: bytes):
    """Serves at a socket that its parent has bound, and keeps: a router that follows takes it over."""
    bound = socket.socket(fileno=content["fd"])
    server = RouterServer(RouterOptions(**content["options"]), Liveness(**content["liveness"]), secret)
    asyncio.run(server.serve(bound))


def run_server(content: dict, secret: bytes):
    """The HTTP server of serving/ in front of a router. Raises ValueError, OSError."""
    address = tuple(content["router"])
    with RemoteLLM(content["model"], lambda: address, secret) as llm:
        name = content["name"] or name_of(content["model"])
        while llm.engine.max_len == 0:  # no decode worker yet
            llm.engine.tend()
        app = create_app(llm, name, max_queue=content["max_queue"])
        serve(app, host=content["host"], port=content["port"])


def end_with_parent():
    """Waits until standard input closes: whoever began this process has gone, or wants it to end."""
    while sys.stdin.buffer.read1(4096):
        pass
    os._exit(0)


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # at once: threads that wait for peers do not matter any more
