"""Caches on their way from prefill to decode workers, over one port a worker.

Knows sizes and times; what travels and who wants it is the simulation's business.
"""

from minitransformer.simulate.cluster import Cluster
from minitransformer.simulate.timeline import Timeline
from minitransformer.simulate.worker import Span, Worker


class Network:
    """Every worker's port sends or receives one piece after another, at the link's bandwidth."""

    def __init__(self, cluster: Cluster, num_workers: int, timeline: Timeline):
        self.link, self.layerwise, self.timeline = cluster.link, cluster.layerwise, timeline
        self.bytes_sent = 0.0
        self._free_at = [0.0] * num_workers

    def send(self, tokens: int, source: Worker, target: Worker, step: Span) -> float:
        """When the keys and values of `tokens` that a step has computed have all arrived.

        Layer by layer, the first can leave when a layer's share of the step is over, and the last leaves
        after the step; else all leave after it.
        """
        layers, nbytes = source.replica.model.num_hidden_layers, tokens * source.replica.kv_bytes
        seconds = nbytes / self.link.bandwidth
        ready = step.start + (step.end - step.start) / layers if self.layerwise else step.end
        begin = max(ready, self._free_at[source.index], self._free_at[target.index])
        end = max(begin + seconds, step.end + seconds / layers) if self.layerwise else begin + seconds
        self._free_at[source.index] = self._free_at[target.index] = begin + seconds
        self.bytes_sent += nbytes
        self.timeline.note(source.index, begin, end + self.link.latency, "transfer")
        return end + self.link.latency
