"""python -m minitransformer.disaggregation: a pool of workers behind an OpenAI-compatible server.

Alone it begins every process on this machine:

    python -m minitransformer.disaggregation --model bundled --prefill 1 --decode 1 --port 8000

Under torchrun each rank is a worker, the first ones for prefill, and rank 0 begins the router and, with
--port, the server. Over several machines --host is the address at which the others reach this one:

    torchrun --nproc-per-node 3 -m minitransformer.disaggregation --prefill 2 --decode 1 --port 8000
"""

import argparse
import os
import sys

from minitransformer.disaggregation.llm import DisaggregatedLLM
from minitransformer.disaggregation.options import TRANSPORTS, Link, RouterOptions
from minitransformer.serving.__main__ import name_of
from minitransformer.serving.http.app import create_app
from minitransformer.serving.http.server import serve


def main(arguments: list[str] | None = None) -> int:
    """Serves until it is told to stop; 0 then, 2 where it could not begin, with the reason in one line."""
    args = parser().parse_args(arguments)
    try:
        if "RANK" in os.environ:
            from minitransformer.disaggregation.ranks import run_rank  # reads torchrun's environment

            run_rank(args)
        else:
            serve_pool(args)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def parser() -> argparse.ArgumentParser:
    new = argparse.ArgumentParser(
        prog="python -m minitransformer.disaggregation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    new.add_argument("--model", default="bundled", help="bundled, a checkpoint folder, or a hub id (bundled)")
    new.add_argument("--name", help="what clients call the model (its id, or its folder's name)")
    new.add_argument("--prefill", type=int, default=1, help="prefill workers (1)")
    new.add_argument("--decode", type=int, default=1, help="decode workers (1)")
    new.add_argument("--host", default="127.0.0.1", help="where all listen (127.0.0.1: this machine only)")
    new.add_argument("--port", type=int, help="of the server; 0 takes any (8000; torchrun: no server)")
    new.add_argument("--router-port", type=int, default=0, help="of the router, under torchrun (any)")
    new.add_argument("--secret-file", help="the run's secret; over several machines each has a copy")
    new.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    new.add_argument("--dtype", choices=["float32", "bfloat16", "float16", "float64"], help="(as stored)")
    new.add_argument("--num-blocks", type=int, default=256, help="of each worker's KV cache (256)")
    new.add_argument("--block-size", type=int, default=16, help="tokens in a block (16)")
    new.add_argument("--max-num-batched-tokens", type=int, default=512, help="new tokens in a step (512)")
    new.add_argument("--max-num-seqs", type=int, help="requests that run at once in a worker (256)")
    new.add_argument("--max-queue", type=int, default=256, help="requests that may wait (256)")
    new.add_argument("--num-threads", type=int, help="of PyTorch in each worker")
    new.add_argument("--no-prefix-caching", action="store_true", help="share no blocks between requests")
    new.add_argument("--local-below", type=int, default=16, help="fewer uncached tokens stay there (16)")
    new.add_argument("--on-loss", choices=["recompute", "fail"], default="recompute")
    new.add_argument("--transport", choices=TRANSPORTS, default="gloo", help="of keys and values (gloo)")
    new.add_argument("--link-gbps", type=float, help="slow the transfer to so many gigabits a second")
    new.add_argument("--link-latency-s", type=float, default=0.0, help="and by so many seconds")
    return new


def serve_pool(args: argparse.Namespace):
    """All processes on this machine. Raises ValueError, OSError, CannotStart."""
    options = worker_options(args)
    pool = DisaggregatedLLM(
        args.model,
        prefill_workers=args.prefill,
        decode_workers=args.decode,
        host=args.host,
        router=router_options(args),
        **options,
    )
    with pool:
        app = create_app(pool, args.name or name_of(args.model), max_queue=args.max_queue)
        serve(app, host=args.host, port=8000 if args.port is None else args.port)


def worker_options(args: argparse.Namespace) -> dict:
    """What `DisaggregatedLLM` and `WorkerOptions` call by the same names."""
    names = ("num_blocks", "block_size", "max_num_batched_tokens", "max_num_seqs", "num_threads", "device")
    return {name: getattr(args, name) for name in names} | {
        "dtype": args.dtype,
        "prefix_caching": not args.no_prefix_caching,
        "link": Link(args.link_gbps, args.link_latency_s, args.transport),
    }


def router_options(args: argparse.Namespace) -> RouterOptions:
    return RouterOptions(local_below=args.local_below, on_loss=args.on_loss)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # at once: threads that wait for peers do not matter any more
