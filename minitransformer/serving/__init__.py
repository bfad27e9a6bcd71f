"""A serving engine: many requests share one model, one cache and one forward pass a step.

Read in this order: request, prefix_cache, block_manager, scheduler, engine, llm. `http/` puts an
OpenAI-compatible server in front.
"""

from minitransformer.serving.llm import LLM
from minitransformer.serving.outputs import RequestOutput

__all__ = ["LLM", "RequestOutput"]
