"""A model behind one object: text or tokens in, text and tokens out, any number of requests at a time."""

import time
from collections.abc import Sequence
from itertools import count

import torch

from minitransformer.model import Transformer, require_token_ids
from minitransformer.sampling import SamplingParams
from minitransformer.serving.engine import Engine
from minitransformer.serving.outputs import RequestOutput
from minitransformer.serving.request import Request, Status
from minitransformer.streaming import TextStream

Prompt = str | Sequence[int]


class LLM:
    """Serves requests with a model and its tokenizer (None: tokens only, and nothing ends an answer early).

    num_blocks, block_size   size of the paged KV cache; a token takes one place of block_size in a block
    max_num_batched_tokens   new tokens that one step may compute
    max_num_seqs             requests that run at once (None: up to 256, within the budget of a step)
    scheduling               "chunked", "prefill_first" or "static" (scheduler.py says what they do)
    prefix_caching           whether requests share the cached blocks of equal beginnings

    A request's tokens do not depend on what else runs: greedy or seeded, they are those of `generate`
    alone, up to a tie within rounding, since sums of other shapes round differently.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer,
        *,
        num_blocks: int,
        block_size: int = 16,
        max_num_batched_tokens: int = 512,
        max_num_seqs: int | None = None,
        scheduling: str = "chunked",
        prefix_caching: bool = True,
    ):
        """Raises ValueError for sizes below one or a policy that there is not."""
        engine = Engine(
            model,
            num_blocks=num_blocks,
            block_size=block_size,
            max_num_batched_tokens=max_num_batched_tokens,
            max_num_seqs=max_num_seqs,
            scheduling=scheduling,
            prefix_caching=prefix_caching,
        )
        self._serve(engine, tokenizer)

    def _serve(self, engine, tokenizer):
        """With any engine: what this class needs of it are the names that `Engine` has in public."""
        self.engine, self.tokenizer = engine, tokenizer
        self._answers: dict[str, _Answer] = {}
        self._ids = count()

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingParams | Sequence[SamplingParams] = SamplingParams(),
    ) -> list[RequestOutput]:
        """Answers all prompts (texts or token ids), in their order; `sampling` is one for all or one each.

        Raises ValueError before anything runs where a request can't be met, or where others are
        unfinished: their outputs would be lost.
        """
        if isinstance(prompts, str):
            raise ValueError("generate takes a list of prompts, got one string: write [prompt]")
        if self.has_unfinished():
            raise ValueError(
                "generate runs alone, but requests are unfinished: call step() until they are done"
            )
        params = [sampling] * len(prompts) if isinstance(sampling, SamplingParams) else list(sampling)
        if len(params) != len(prompts):
            raise ValueError(f"{len(params)} sampling parameters for {len(prompts)} prompts")
        requests = [self.make_request(*pair) for pair in zip(prompts, params, strict=True)]
        ids, done = [self.add(request) for request in requests], {}
        try:
            while self.has_unfinished():
                done |= {output.request_id: output for output in self.step() if output.finished}
        finally:
            for request_id in ids:  # after Ctrl-C: nothing is left behind
                self.abort(request_id)
        return [done[request_id] for request_id in ids]

    def add_request(self, prompt: Prompt, sampling: SamplingParams = SamplingParams()) -> str:
        """Queues a request for the steps to come; returns its id. Raises ValueError where it can't be met."""
        return self.add(self.make_request(prompt, sampling))

    def add(self, request: Request) -> str:
        """Queues what `make_request` made; returns its id."""
        self.engine.add(request)
        self._answers[request.id] = _Answer(request, self.tokenizer)
        return request.id

    def step(self) -> list[RequestOutput]:
        """One step of the engine; an output for each request that got a token, or an error."""
        return [self._output(request) for request in self.engine.step()]

    def has_unfinished(self) -> bool:
        return self.engine.has_unfinished()

    def abort(self, request_id: str) -> bool:
        """Ends a request and frees its blocks at once. False where it has ended already, or never was."""
        answer = self._answers.pop(request_id, None)
        if answer is None:
            return False
        self.engine.finish(answer.request, "abort")
        return True

    def make_request(self, prompt: Prompt, sampling: SamplingParams = SamplingParams()) -> Request:
        """A request that fits this model and this cache, or a ValueError that says why there is none."""
        if self.tokenizer is None and (isinstance(prompt, str) or sampling.stop_strings):
            raise ValueError("prompts and stop strings that are text need a tokenizer, and this LLM has none")
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else [int(i) for i in prompt]
        require_token_ids(torch.tensor([ids], dtype=torch.long), self.engine.config.vocab_size)
        budget = self.engine.budget(len(ids), sampling.max_tokens)
        stop_ids = frozenset(sampling.stop_ids).union(self.tokenizer.stop_ids if self.tokenizer else ())
        return Request(
            f"request-{next(self._ids)}", ids, sampling, budget, time.perf_counter(), stop_ids=stop_ids
        )

    def _output(self, request: Request) -> RequestOutput:
        """Turns the newest token into text, which may end the request at a stop string."""
        answer = self._answers[request.id]
        new_text = answer.take_newest()
        if answer.stopped and request.status is not Status.FINISHED:
            self.engine.finish(request, "stop")
        if request.status is Status.FINISHED:
            del self._answers[request.id]
        reason = "stop" if answer.stopped else request.finish_reason  # also if it was the last token allowed
        return RequestOutput.of(request, answer.text, new_text, reason)


class _Answer:
    """The text of one request as it grows."""

    def __init__(self, request: Request, tokenizer):
        self.request, self.text = request, ""
        self._stream = TextStream(tokenizer, request.sampling.stop_strings) if tokenizer else None

    @property
    def stopped(self) -> bool:
        return self._stream is not None and self._stream.stopped

    def take_newest(self) -> str:
        """What the newest token adds to the text, and the held back rest if it is the last one."""
        if self._stream is None:
            return ""
        token, is_last = self.request.tokens[-1], self.request.status is Status.FINISHED
        is_text = token not in self.request.stop_ids and self.request.error is None
        new = self._stream.push(token) if is_text else ""
        new += self._stream.finish() if is_last else ""
        self.text += new
        return new
