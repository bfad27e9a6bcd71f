"""What the server counts, in Prometheus form. Times are in seconds."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from minitransformer.serving.engine import Engine
from minitransformer.serving.outputs import RequestOutput

TTFT_BUCKETS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
TPOT_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)


class Metrics:
    """Counters of one server, in a registry of its own: two servers in a process do not mix."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, engine: Engine):
        self.registry = CollectorRegistry()
        self.ttft = self._make(
            Histogram, "time_to_first_token_seconds", "From arrival to first token", buckets=TTFT_BUCKETS
        )
        self.tpot = self._make(
            Histogram, "time_per_output_token_seconds", "Per token after the first", buckets=TPOT_BUCKETS
        )
        self.stages = self._make(
            Histogram,
            "request_stage_seconds",
            "Time of a finished request in each stage",
            labelnames=["stage"],
            buckets=TTFT_BUCKETS,
        )
        self.prompt_tokens = self._make(Counter, "prompt_tokens", "Tokens of prompts that got an answer")
        self.cached_tokens = self._make(
            Counter, "cached_prompt_tokens", "Of these, found in the prefix cache"
        )
        self.output_tokens = self._make(Counter, "generated_tokens", "Tokens of answers")
        self.finished = self._make(
            Counter, "requests_finished", "Requests by how they ended", labelnames=["reason"]
        )
        self.rejected = self._make(
            Counter, "requests_rejected", "Requests refused because the queue was full"
        )
        self._prompt_tokens, self._cached_tokens = 0, 0
        self._watch(engine)

    def observe(self, output: RequestOutput):
        """Counts one new token, and the request with its first and with its last one."""
        if output.error is not None:
            self.finished.labels(output.finish_reason).inc()
            return
        self.output_tokens.inc()
        if len(output.token_ids) == 1:
            self.ttft.observe(output.ttft_s)
            self.prompt_tokens.inc(output.num_prompt_tokens)
            self.cached_tokens.inc(output.cached_tokens)
            self._prompt_tokens += output.num_prompt_tokens
            self._cached_tokens += output.cached_tokens
        if output.finished:
            self.finished.labels(output.finish_reason).inc()
            if output.tpot_s is not None:
                self.tpot.observe(output.tpot_s)
            for stage, seconds in output.stages.items():
                self.stages.labels(stage).observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def _watch(self, engine: Engine):
        """Gauges that look at the engine when they are read; all are single numbers, whole at any time."""
        scheduler, blocks = engine.scheduler, engine.blocks
        gauges = {
            "requests_waiting": ("Requests in the queue", lambda: len(scheduler.waiting)),
            "requests_running": ("Requests that take part in steps", lambda: len(scheduler.running)),
            "cache_blocks": ("Blocks of the KV cache", lambda: blocks.num_blocks),
            "cache_use": ("Share of blocks in use", lambda: 1 - blocks.num_free / blocks.num_blocks),
            "prefix_cache_hit_rate": ("Share of prompt tokens that were found cached", self._hit_rate),
        }
        for name, (words, look) in gauges.items():
            self._make(Gauge, name, words).set_function(look)

    def _hit_rate(self) -> float:
        return self._cached_tokens / max(self._prompt_tokens, 1)

    def _make(self, kind, name: str, words: str, **options):
        return kind(name, words, namespace="minitransformer", registry=self.registry, **options)
