"""The engine: many requests, one model, one step at a time. Tokens in, tokens out.

Knows no text: what turns prompts into tokens and tokens into answers is `llm.py`.
"""

import time

import torch

from minitransformer.config import ModelConfig
from minitransformer.model import Transformer
from minitransformer.paged_cache import PagedKVCache
from minitransformer.ragged import RaggedBatch
from minitransformer.sampling import sample
from minitransformer.serving.block_manager import BlockManager
from minitransformer.serving.request import Request
from minitransformer.serving.scheduler import Row, Scheduler

MOST_SEQS = 256  # requests that run at once, unless told otherwise


class RequestTooLong(ValueError):
    """Prompt and answer together have no room."""


class Engine:
    """A model, its paged cache, and who may use them when."""

    def __init__(
        self,
        model: Transformer,
        *,
        num_blocks: int,
        block_size: int = 16,
        max_num_batched_tokens: int,
        max_num_seqs: int | None = None,
        scheduling: str = "chunked",
        prefix_caching: bool = True,
        connector=None,
    ):
        """`connector` brings keys and values from other processes, or takes them there; None: neither.

        Raises ValueError for sizes below one or a policy that there is not.
        """
        self.model, self.connector = model, connector
        self.cache = PagedKVCache(model.config, num_blocks, block_size, model.dtype, model.device)
        self.blocks = BlockManager(num_blocks, block_size, prefix_caching)
        max_num_seqs = max_num_seqs or min(MOST_SEQS, max_num_batched_tokens)
        self.scheduler = Scheduler(self.blocks, scheduling, max_num_batched_tokens, max_num_seqs, connector)

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    @property
    def max_len(self) -> int:
        """Tokens, prompt and answer together, that one request can have."""
        # The last token of an answer is never read again, so it needs no place in the cache.
        room = self.blocks.num_blocks * self.blocks.block_size + 1
        return min(room, self.model.config.max_position_embeddings)

    def has_unfinished(self) -> bool:
        return bool(self.scheduler.waiting or self.scheduler.loading or self.scheduler.running)

    def budget(self, num_prompt_tokens: int, max_tokens: int | None) -> int:
        """New tokens that a request may have; None: as many as fit. Raises RequestTooLong."""
        room = self.max_len - num_prompt_tokens
        wanted = max(room, 1) if max_tokens is None else max_tokens
        if wanted > room:
            raise RequestTooLong(
                f"{num_prompt_tokens} tokens of prompt and {wanted} new ones pass the {self.max_len} that "
                "this model and cache have for one request"
            )
        return wanted

    def add(self, request: Request):
        """Queues a request, whose size must have been asked of `budget`."""
        assert len(request.prompt_ids) + request.max_new_tokens <= self.max_len
        self.scheduler.add(request)

    def step(self) -> list[Request]:
        """One forward pass; returns the requests that got a token, some of them finished by it."""
        rows = self.scheduler.schedule()
        self.cache.copy_blocks(self.blocks.copies)
        self.blocks.copies.clear()
        got = self._postprocess(rows, self._run(rows)) if rows else []
        return got if self.connector is None else got + self._take_loaded()

    def wake(self):
        """Makes a step that waits return; here none ever waits."""

    def finish(self, request: Request, reason: str):
        """Ends a waiting or running request; its memory is free at once."""
        if self.connector is not None:
            self.connector.request_finished(request)
        self.blocks.deallocate(request)
        self.scheduler.remove(request)
        request.finish(reason)

    @torch.inference_mode()
    def _run(self, rows: list[Row]) -> list[int]:
        """The next token of each row whose tokens are all computed by this step, in their order."""
        now = time.perf_counter()
        for request, _ in rows:
            request.started_s = request.started_s or now
        batch = self._batch(rows)
        complete = [i for i, row in enumerate(rows) if row.num_tokens == row.request.num_uncomputed]
        if self.connector is not None:
            self.connector.start_load_kv(rows)
        logits = self.model.forward_ragged(batch, self.cache, self.connector)[complete]
        if self.connector is not None:
            self.connector.wait_for_save()
        if not complete:
            return []
        requests = [rows[i].request for i in complete]
        ids = sample(logits, [r.sampling for r in requests], [r.num_output for r in requests])
        return ids.tolist()

    def _batch(self, rows: list[Row]) -> RaggedBatch:
        starts = [request.num_computed for request, _ in rows]
        return RaggedBatch.build(
            [r.tokens[start : start + n] for (r, n), start in zip(rows, starts, strict=True)],
            starts,
            [request.blocks for request, _ in rows],
            block_size=self.blocks.block_size,
            window=self.model.config.sliding_window,
            split_singles=not self.model.ops.reads_in_place,
            device=self.model.device,
        )

    def _postprocess(self, rows: list[Row], tokens: list[int]) -> list[Request]:
        """Counts what was computed, hands out the new tokens, frees what has ended."""
        now, got, tokens = time.perf_counter(), [], iter(tokens)
        for request, num_tokens in rows:
            request.advance(num_tokens)
            self.blocks.name_full_blocks(request, num_tokens)
            if request.num_uncomputed == 0:
                self._append(request, next(tokens), now)
                got.append(request)
        return got

    def _append(self, request: Request, token: int, now_s: float):
        request.append(token, now_s)
        if request.finish_reason:
            self.finish(request, request.finish_reason)

    def _take_loaded(self) -> list[Request]:
        """Lets requests run whose keys and values have come, each with the token sampled where they were
        computed."""
        loaded, now = self.connector.get_finished(), time.perf_counter()
        for request, token in loaded:
            self.scheduler.resume(request)
            num_loaded, request.started_s = request.num_uncomputed, now
            request.advance(num_loaded)
            self.blocks.name_full_blocks(request, num_loaded)
            self._append(request, token, now)
        return [request for request, _ in loaded]
