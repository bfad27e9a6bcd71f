"""Every family against the transformers library, on small models with random weights."""

import json
from functools import cache

import pytest
import torch
from small_models import LLAMA3_SCALING, SHAPE, random_ids, randomize

from minitransformer import KVCache, decode, generate, load_pretrained, prefill, save_pretrained
from minitransformer.config import ModelConfig

transformers = pytest.importorskip("transformers")
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

PROMPT, NEW = 41, 9  # beyond the windows (8) and original positions (16) below, a multiple of no chunk
ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
CASES = {
    "llama 1, as many key/value heads as queries": ("Llama", {"num_key_value_heads": 4}),
    "llama 2, grouped": ("Llama", {"rms_norm_eps": 1e-5}),
    "llama 3, scaled, tied": (
        "Llama",
        {"rope_parameters": LLAMA3_SCALING | {"rope_theta": 500_000.0}, "tie_word_embeddings": True},
    ),
    "llama, linear scaling": ("Llama", {"rope_parameters": ROPE | {"rope_type": "linear", "factor": 4.0}}),
    "llama, biases": ("Llama", {"attention_bias": True}),
    "llama, one key/value head, wide heads": ("Llama", {"num_key_value_heads": 1, "head_dim": 24}),
    "mistral, window": ("Mistral", {"sliding_window": 8}),
    "mistral, no window, narrow heads": ("Mistral", {"sliding_window": None, "head_dim": 6}),
    "qwen 2, tied": ("Qwen2", {"tie_word_embeddings": True, "rope_parameters": ROPE | {"rope_theta": 1e6}}),
    "qwen 2.5, one key/value head": ("Qwen2", {"num_key_value_heads": 1}),
    "qwen 2, window in all layers": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0},
    ),
    "qwen 3, wide heads, tied": ("Qwen3", {"head_dim": 20, "tie_word_embeddings": True}),
    "qwen 3, biases, seven heads on one": (
        "Qwen3",
        {"attention_bias": True, "num_attention_heads": 7, "num_key_value_heads": 1, "head_dim": 8},
    ),
}


@cache
def theirs(case: str):
    family, changes = CASES[case]
    torch.manual_seed(len(case))
    config = getattr(transformers, f"{family}Config")(
        **SHAPE | changes, bos_token_id=None, eos_token_id=None, pad_token_id=None
    )
    return randomize(getattr(transformers, f"{family}ForCausalLM")(config)).eval()


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return request.param


@pytest.fixture(scope="module")
def folder(case, tmp_path_factory):
    path = tmp_path_factory.mktemp("theirs")
    theirs(case).save_pretrained(path)
    return path


@pytest.fixture(scope="module", params=["reference", "sdpa"])
def ours(folder, request):
    return load_pretrained(folder, attention=request.param)[0]


@cache
def their_logits(case: str) -> torch.Tensor:
    with torch.inference_mode():
        return theirs(case)(random_ids(3, PROMPT)).logits


@cache
def their_tokens(case: str) -> torch.Tensor:
    return theirs(case).generate(random_ids(3, PROMPT), max_new_tokens=NEW, do_sample=False)


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    assert theirs.std() > 0.3, "logits so small that 1e-4 would prove nothing"
    return ours.shape == theirs.shape and (ours - theirs).abs().max().item() < 1e-4


def cache_for(model, spare: int = 13) -> KVCache:
    return KVCache(model.config, 3, PROMPT + spare)


def test_logits_without_a_cache(ours, case):
    with torch.inference_mode():
        assert close(ours(random_ids(3, PROMPT)), their_logits(case))


@pytest.mark.parametrize("chunk_size", [None, 7, 16, 40, 100])
def test_logits_after_chunked_prefill(ours, case, chunk_size):
    cache = cache_for(ours)
    logits = prefill(ours, random_ids(3, PROMPT), cache, chunk_size=chunk_size)
    assert close(logits, their_logits(case)[:, -1])
    assert cache.seq_len == PROMPT


def test_logits_of_every_position_in_chunks(ours, case):
    cache = cache_for(ours)
    with torch.inference_mode():
        pieces = [ours(piece, cache) for piece in random_ids(3, PROMPT).split(6, dim=1)]
    assert close(torch.cat(pieces, dim=1), their_logits(case))


def test_logits_of_every_decode_step(ours, case):
    ids, cache = random_ids(3, PROMPT), cache_for(ours)
    steps = [prefill(ours, ids[:, :5], cache)]
    steps += [decode(ours, ids[:, t : t + 1], cache) for t in range(5, PROMPT)]
    assert close(torch.stack(steps, dim=1), their_logits(case)[:, 4:])


@pytest.mark.parametrize("chunk_size", [None, 16])
def test_greedy_tokens_are_identical(ours, case, chunk_size):
    tokens = generate(ours, random_ids(3, PROMPT), NEW, chunk_size=chunk_size)
    assert torch.equal(tokens, their_tokens(case))


def test_our_checkpoint_opens_in_transformers(folder, case, tmp_path):
    model, _ = load_pretrained(folder)
    save_pretrained(model, tmp_path)
    again, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(again) is type(theirs(case))
    assert not any(report.values()), report  # nothing missing, unexpected or misshapen
    with torch.inference_mode():
        logits = again.eval()(random_ids(3, PROMPT)).logits
    assert torch.equal(logits, their_logits(case))


def test_both_spellings_of_rope_give_one_config(folder, case):
    raw = json.loads((folder / "config.json").read_text())
    assert "rope_parameters" in raw, "this version of transformers writes the newer spelling"
    rope = raw["rope_parameters"]
    older = {k: v for k, v in raw.items() if k != "rope_parameters"}
    older["rope_theta"] = rope["rope_theta"]
    scaling = {k: v for k, v in rope.items() if k != "rope_theta"}
    older["rope_scaling"] = None if rope["rope_type"] == "default" else scaling
    assert ModelConfig.from_hf(older) == ModelConfig.from_hf(raw)
    if older["rope_scaling"]:
        oldest = older | {"rope_scaling": {"type": scaling.pop("rope_type")} | scaling}
        assert ModelConfig.from_hf(oldest) == ModelConfig.from_hf(raw)


def test_shards_written_by_transformers(case, tmp_path):
    theirs(case).save_pretrained(tmp_path, max_shard_size="12KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    with torch.inference_mode():
        assert close(load_pretrained(tmp_path)[0](random_ids(3, PROMPT)), their_logits(case))


def test_bfloat16_keeps_its_dtype_and_stays_near(case, folder):
    model, _ = load_pretrained(folder, dtype=torch.bfloat16)
    reference = theirs(case)
    with torch.inference_mode():
        ours = model(random_ids(3, PROMPT)).float()
    assert model.dtype == torch.bfloat16 and reference.dtype == torch.float32
    error = (ours - their_logits(case)).norm() / their_logits(case).norm()
    assert 1e-4 < error < 5e-2
