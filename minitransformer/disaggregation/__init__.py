"""Disaggregated prefill and decode: one request, two workers, and a router between.

Read in this order: records, messages, wire, channel, network (who says what to whom, and how);
connector, sender, outgoing, pair, receiver, incoming (how keys and values travel); worker, prefill_worker,
decode_worker; pool, flight, router, router_server (who does what); remote_engine, process, supervisor,
llm (how it is begun and asked).
"""

from minitransformer.disaggregation.llm import DisaggregatedLLM
from minitransformer.disaggregation.options import Link, Liveness, RouterOptions

__all__ = ["DisaggregatedLLM", "Link", "Liveness", "RouterOptions"]
