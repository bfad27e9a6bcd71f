"""ModelConfig: what it derives, what it refuses, and what it reads from public config.json files."""

import json
from dataclasses import replace

import pytest
from small_models import LLAMA3_SCALING, SHAPE, small_config

from minitransformer import ModelConfig, Transformer

HF = SHAPE | {"architectures": ["LlamaForCausalLM"]}


def test_heads_default_to_mha_and_equal_shares():
    config = ModelConfig(10, 48, 64, 1, 6)
    assert (config.num_key_value_heads, config.head_dim, config.group_size) == (6, 8, 1)


def test_derived_sizes():
    config = small_config(num_attention_heads=6, num_key_value_heads=2, head_dim=10)
    assert (config.group_size, config.q_size, config.kv_size) == (3, 60, 20)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True},
        {"attention_bias": True},
        {"attention_bias": True, "attention_out_bias": True},
        {"qk_norm": True, "head_dim": 20, "num_key_value_heads": 1},
    ],
)
def test_num_parameters_counts_the_models_own(changes):
    model = Transformer(small_config(**changes))
    assert model.config.num_parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 0}, "vocab_size must be a positive whole number, got 0"),
        ({"hidden_size": 3.5}, "hidden_size"),
        ({"num_hidden_layers": True}, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, r"num_attention_heads \(4\) must be a multiple .* \(3\)"),
        ({"hidden_size": 30}, "give head_dim"),
        ({"head_dim": 7}, r"head_dim \(7\) must be even"),
        ({"sliding_window": 0}, "sliding_window"),
        ({"rms_norm_eps": 0}, "rms_norm_eps must be a number above 0, got 0"),
        ({"rope_theta": "big"}, "rope_theta must be a number above 0, got 'big'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "'yarn' is not supported"),
        ({"rope_scaling": {"rope_type": "linear"}}, "'linear' lacks factor"),
        ({"rope_scaling": LLAMA3_SCALING | {"factor": -1}}, r"rope_scaling\['factor'\]"),
        ({"rope_scaling": LLAMA3_SCALING | {"low_freq_factor": 4.0}}, "low_freq_factor < high_freq_factor"),
    ],
)
def test_impossible_shapes_are_refused_with_the_numbers(changes, message):
    with pytest.raises(ValueError, match=message):
        small_config(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "unknown architecture GPT2LMHeadModel: .*Qwen3ForCausalLM"),
        ({"architectures": None}, r"unknown architecture \(none named\)"),
        ({"architectures": None, "model_type": "mamba"}, "unknown architecture Mamba"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"quantization_config": {"bits": 4}}, "quantized"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic' is not supported"),
        ({"rope_scaling": "linear"}, "must be an object"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "each kind of layer"),
        ({"vocab_size": None}, "lacks vocab_size"),
    ],
)
def test_what_would_compute_something_else_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_hf(HF | changes)


def test_windows_in_some_layers_only_are_refused():
    qwen = HF | {"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True, "sliding_window": 8}
    with pytest.raises(ValueError, match="some layers only"):
        ModelConfig.from_hf(qwen | {"max_window_layers": 1})
    with pytest.raises(ValueError, match="some layers only"):
        ModelConfig.from_hf(qwen | {"layer_types": ["full_attention", "sliding_attention"]})
    assert ModelConfig.from_hf(qwen | {"max_window_layers": 0}).sliding_window == 8
    assert ModelConfig.from_hf(qwen | {"max_window_layers": 2}).sliding_window is None
    assert ModelConfig.from_hf(qwen | {"layer_types": ["full_attention"] * 2}).sliding_window is None
    assert ModelConfig.from_hf(qwen | {"use_sliding_window": False}).sliding_window is None


def test_fields_left_out_take_the_familys_defaults():
    needed = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    bare = {name: SHAPE[name] for name in needed} | {"num_attention_heads": 32, "hidden_size": 256}
    llama = ModelConfig.from_hf(bare | {"architectures": ["LlamaForCausalLM"]})
    assert (llama.num_key_value_heads, llama.max_position_embeddings) == (32, 2048)
    mistral = ModelConfig.from_hf(bare | {"architectures": ["MistralForCausalLM"]})
    assert (mistral.num_key_value_heads, mistral.sliding_window) == (8, 4096)
    qwen = ModelConfig.from_hf(bare | {"architectures": ["Qwen3ForCausalLM"]})
    assert (qwen.head_dim, qwen.max_position_embeddings, qwen.sliding_window) == (128, 32768, None)


def test_model_type_names_the_family_where_architectures_is_missing():
    raw = SHAPE | {"model_type": "qwen3", "head_dim": 8}
    assert ModelConfig.from_hf(raw).qk_norm


@pytest.mark.parametrize(
    ("changes", "family"),
    [
        ({}, "Llama"),
        ({"rope_scaling": LLAMA3_SCALING, "rope_theta": 5e5}, "Llama"),
        ({"attention_bias": True, "attention_out_bias": True}, "Llama"),
        ({"sliding_window": 8}, "Mistral"),
        ({"attention_bias": True}, "Qwen2"),
        ({"attention_bias": True, "sliding_window": 8}, "Qwen2"),
        ({"qk_norm": True, "head_dim": 20}, "Qwen3"),
        ({"qk_norm": True, "sliding_window": 8}, "Qwen3"),
    ],
)
def test_to_hf_names_a_family_with_these_features_and_reads_back_equal(changes, family):
    config = small_config(**changes)
    raw = config.to_hf()
    assert raw["architectures"] == [f"{family}ForCausalLM"]
    assert ModelConfig.from_hf(json.loads(json.dumps(raw))) == config


def test_a_loaded_config_can_be_changed_beyond_its_family():
    llama = ModelConfig.from_hf(HF)
    assert llama.to_hf()["model_type"] == "llama"
    assert replace(llama, sliding_window=8).to_hf()["model_type"] == "mistral"


def test_a_mixture_that_no_family_has_cannot_be_written():
    with pytest.raises(ValueError, match="no public architecture has attention_bias=True"):
        small_config(qk_norm=True, attention_bias=True).to_hf()


def test_configs_are_hashable_whatever_their_rope():
    assert len({small_config(), small_config(rope_scaling=LLAMA3_SCALING), small_config()}) == 2


def test_reading_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config\.json at .*config\.json"):
        ModelConfig.from_hf(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(HF))
    assert ModelConfig.from_hf(tmp_path) == ModelConfig.from_hf(str(file)) == ModelConfig.from_hf(HF)
    for text, message in [("{", "not valid JSON"), ("[]", "must hold an object"), ("\xff", "not valid JSON")]:
        file.write_bytes(text.encode("latin-1"))
        with pytest.raises(ValueError, match=message):
            ModelConfig.from_hf(file)
