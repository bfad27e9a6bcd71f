"""python -m minitransformer.serving --model ... --port ...: an OpenAI-compatible server."""

import argparse
import os
import sys

import torch

from minitransformer.checkpoint import load_pretrained
from minitransformer.model import Transformer
from minitransformer.paged_cache import PagedKVCache
from minitransformer.serving.http.app import create_app
from minitransformer.serving.http.server import serve
from minitransformer.serving.llm import LLM
from minitransformer.serving.scheduler import POLICIES


def main(arguments: list[str] | None = None) -> int:
    """Serves until it is told to stop; 0 then, 2 where it could not begin, with the reason in one line."""
    args = parser().parse_args(arguments)
    try:
        app = create_app(load(args), args.name or name_of(args.model), max_queue=args.max_queue)
        serve(app, host=args.host, port=args.port)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # while the model was being loaded
        return 130
    return 0


def parser() -> argparse.ArgumentParser:
    new = argparse.ArgumentParser(prog="python -m minitransformer.serving", description=__doc__)
    new.add_argument("--model", default="bundled", help="bundled, a checkpoint folder, or a hub id (bundled)")
    new.add_argument("--name", help="what clients call the model (its id, or its folder's name)")
    new.add_argument(
        "--host", default="127.0.0.1", help="address to listen at (127.0.0.1: this machine only)"
    )
    new.add_argument("--port", type=int, default=8000, help="0 takes any free one (8000)")
    new.add_argument("--device", help="cpu or cuda (cuda where there is one)")
    new.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="of the weights (as stored)")
    new.add_argument("--cache-gb", type=float, default=1.0, help="memory for the KV cache, in GB (1)")
    new.add_argument("--num-blocks", type=int, help="blocks of the KV cache, instead of --cache-gb")
    new.add_argument("--block-size", type=int, default=16, help="tokens in a block (16)")
    new.add_argument("--max-num-batched-tokens", type=int, default=512, help="new tokens in a step (512)")
    new.add_argument("--max-num-seqs", type=int, help="requests that run at once (256)")
    new.add_argument("--max-queue", type=int, default=256, help="requests that may wait (256)")
    new.add_argument("--scheduling", choices=POLICIES, default="chunked")
    new.add_argument("--no-prefix-caching", action="store_true", help="share no blocks between requests")
    return new


def load(args: argparse.Namespace) -> LLM:
    """The model and its engine, as the arguments say. Raises ValueError, FileNotFoundError."""
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, args.dtype) if args.dtype else None
    model, tokenizer = load_pretrained(args.model, dtype=dtype, device=device)
    return LLM(
        model,
        tokenizer,
        num_blocks=args.num_blocks or blocks_in(args.cache_gb * 1e9, model, args.block_size),
        block_size=args.block_size,
        max_num_batched_tokens=args.max_num_batched_tokens,
        max_num_seqs=args.max_num_seqs,
        scheduling=args.scheduling,
        prefix_caching=not args.no_prefix_caching,
    )


def blocks_in(nbytes: float, model: Transformer, block_size: int) -> int:
    """Blocks that fit into so much memory. Raises ValueError where it is not even one."""
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")
    size = PagedKVCache.block_nbytes(model.config, block_size, model.dtype)
    if nbytes < size:
        raise ValueError(f"a block of the KV cache takes {size} bytes, and {nbytes:.0f} are given")
    return int(nbytes // size)


def name_of(path_or_id: str) -> str:
    """A hub id as it is, a folder by its last part."""
    return os.path.basename(os.path.abspath(path_or_id)) if os.path.isdir(path_or_id) else path_or_id


if __name__ == "__main__":
    sys.exit(main())
