"""The serving engine on this package's kernels: the same tokens as on PyTorch's operations."""

from kernel_checks import DEVICE
from small_models import random_ids, small_model

from minitransformer import SamplingParams
from minitransformer.layers import triton_ops
from minitransformer.serving import LLM

SHAPE = {"num_hidden_layers": 1, "max_position_embeddings": 64}
PROMPTS = [random_ids(1, n, seed=n)[0].tolist() for n in (2, 19, 7)]


def served(attention: str) -> list[list[int]]:
    model = small_model(attention=attention, **SHAPE).to(DEVICE)
    llm = LLM(model, None, num_blocks=30, block_size=4, max_num_batched_tokens=12)
    return [output.token_ids for output in llm.generate(PROMPTS, SamplingParams(max_tokens=4))]


def test_a_model_on_kernels_is_served_as_one_on_pytorch(monkeypatch):
    rows = {"paged_attention": [], "paged_prefill": []}
    for name, seen in rows.items():
        kernel = getattr(triton_ops.kernels, name)
        noting = lambda q, *args, kernel=kernel, seen=seen: seen.append(len(q)) or kernel(q, *args)  # noqa: E731
        monkeypatch.setattr(triton_ops.kernels, name, noting)
    assert served("triton") == served("sdpa")
    assert max(rows["paged_attention"]) == len(PROMPTS)  # all that decode go through the kernel together
    assert rows["paged_prefill"]  # and pieces of prompts through theirs: nothing is gathered
