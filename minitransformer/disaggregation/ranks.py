"""Under torchrun: each rank is a worker; they find one another over torchrun's TCPStore.

The store says where the router is, and nothing secret: whoever reaches torchrun's port can read it. The
secret is in a file or in the environment. On one machine rank 0 makes it up, in a file that only this
user can read, and tells the others where.
"""

import argparse
import os
import secrets
import signal
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path

from torch.distributed import Store, rendezvous

from minitransformer.disaggregation.__main__ import router_options, worker_options
from minitransformer.disaggregation.options import SECRET, Liveness, WorkerOptions
from minitransformer.disaggregation.process import run_worker
from minitransformer.disaggregation.supervisor import Supervisor

MEET_S = 120  # so long the ranks wait for rank 0
ADDRESS, SECRET_FILE = "minitransformer/router", "minitransformer/secret-file"


def run_rank(args: argparse.Namespace):
    """This rank's part, to its end. Raises ValueError, OSError, RuntimeError."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if args.prefill + args.decode != size:
        raise ValueError(f"{args.prefill} prefill and {args.decode} decode workers, but {size} ranks")
    signal.signal(signal.SIGTERM, _interrupt)
    if "TORCHELASTIC_RUN_ID" in os.environ:  # begun by torchrun, which may be killed without a word
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), name="parent", daemon=True).start()
    store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=MEET_S)))
    with ExitStack() as stack:
        secret = stack.enter_context(shared_secret(store, args.secret_file, is_first=rank == 0))
        if rank == 0:
            begin_router(stack, store, args, secret)
        host, port = store.get(ADDRESS).decode().rsplit(" ", 1)
        kind = "prefill" if rank < args.prefill else "decode"
        options = WorkerOptions(
            name=f"{kind}-{rank}",
            model=args.model,
            router_host=host,
            router_port=int(port),
            host=args.host,
            **worker_options(args),
        )
        run_worker(kind, options, secret.encode())


def begin_router(stack: ExitStack, store: Store, args: argparse.Namespace, secret: str):
    """Rank 0 alone: the router and, where a port is asked for, the server, as processes beside it."""
    supervisor = Supervisor(args.host, args.router_port, router_options(args), Liveness(), secret)
    stack.callback(supervisor.close)
    host, port = supervisor.address
    store.set(ADDRESS, f"{host} {port}")
    if args.port is None:
        print(f"The router listens at {host}:{port}", flush=True)
    else:
        front = {"model": args.model, "name": args.name, "host": args.host, "port": args.port}
        supervisor.begin_server(front | {"max_queue": args.max_queue, "router": [host, port]})


@contextmanager
def shared_secret(store: Store, path: str | None, is_first: bool):
    """The run's secret, the same in every rank. Raises ValueError where it can't be shared safely."""
    if path is not None or SECRET in os.environ:
        yield Path(path).read_text().strip() if path is not None else os.environ[SECRET]
        return
    if os.environ.get("LOCAL_WORLD_SIZE") != os.environ["WORLD_SIZE"]:
        raise ValueError(
            f"several machines must be given the same secret: --secret-file, or {SECRET} in the environment"
        )
    if not is_first:
        yield Path(store.get(SECRET_FILE).decode()).read_text()
        return
    with tempfile.NamedTemporaryFile("w", prefix="minitransformer-") as file:  # for this user's eyes only
        file.write(secrets.token_hex(32))
        file.flush()
        store.set(SECRET_FILE, file.name)
        yield Path(file.name).read_text()


def _end_with_parent(parent: int):
    """As torchrun would end this rank, once torchrun itself has gone."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(10)
    os._exit(1)  # it is stuck in a step


def _interrupt(*_):
    """torchrun ends its ranks with SIGTERM: leave as after Ctrl-C, with everything closed."""
    sys.exit(0)
