"""The public model families: what their `config.json` files say, and what they leave unsaid.

A family is a name in `architectures`. Some of what makes a model is written in its config.json, some
follows from the family alone (Qwen2 has biases, Qwen3 has norms on queries and keys). Here the two
become one set of ModelConfig fields, and back.
"""

import json
from pathlib import Path

QWEN_DEFAULTS = {
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "max_window_layers": 28,
}

# What each public architecture means for what its config.json leaves unsaid.
#   biases:   (on q, k, v; on the output projection), or the config.json field that decides both
#   windows:  whether its layers can have a sliding window
#   defaults: of fields that are left out (the class defaults of the transformers library)
ARCHITECTURES = {
    "LlamaForCausalLM": {"biases": "attention_bias", "qk_norm": False, "windows": False, "defaults": {}},
    "MistralForCausalLM": {
        "biases": (False, False),
        "qk_norm": False,
        "windows": True,
        "defaults": {
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "sliding_window": 4096,
        },
    },
    "Qwen2ForCausalLM": {
        "biases": (True, False),
        "qk_norm": False,
        "windows": True,
        "defaults": QWEN_DEFAULTS,
    },
    "Qwen3ForCausalLM": {
        "biases": "attention_bias",
        "qk_norm": True,
        "windows": True,
        "defaults": QWEN_DEFAULTS | {"head_dim": 128},
    },
}
OURS_ALONE = ("attention_out_bias", "qk_norm", "architecture")  # follow from the family


def read_config(path_or_dict) -> dict:
    """The ModelConfig fields that a public config.json gives: a dict, the file, or its folder.

    Raises FileNotFoundError where there is none, ValueError for an unknown architecture or a feature
    that this package would silently get wrong.
    """
    raw = path_or_dict if isinstance(path_or_dict, dict) else _read_json(path_or_dict)
    architecture = _architecture(raw)
    meaning = ARCHITECTURES[architecture]
    raw = meaning["defaults"] | raw
    _refuse_unsupported(raw, architecture)
    qkv_bias, out_bias = _biases(raw, meaning["biases"])
    theta, scaling = _rope(raw)
    ours = {
        "attention_bias": qkv_bias,
        "attention_out_bias": out_bias,
        "qk_norm": meaning["qk_norm"],
        "rope_theta": theta,
        "rope_scaling": scaling,
        "sliding_window": _sliding_window(raw, architecture),
        "architecture": architecture,
    }
    return {name: value for name, value in raw.items() if value is not None} | ours


def write_config(given: dict, architecture: str) -> dict:
    """The config.json of ModelConfig fields: the way back of `read_config`."""
    model_type = architecture.removesuffix("ForCausalLM").lower()
    out = {"architectures": [architecture], "model_type": model_type, "hidden_act": "silu"}
    out |= {name: value for name, value in given.items() if name not in OURS_ALONE}
    if model_type.startswith("qwen"):  # its windows are for layers from max_window_layers on
        out |= {"use_sliding_window": given["sliding_window"] is not None, "max_window_layers": 0}
    return out


def fitting_architectures(
    attention_bias: bool, attention_out_bias: bool, qk_norm: bool, sliding_window: int | None
) -> list[str]:
    """The families that can have these features, in the order of ARCHITECTURES."""

    def fits(meaning) -> bool:
        one_switch = isinstance(meaning["biases"], str) and attention_bias == attention_out_bias
        return (
            (one_switch or (attention_bias, attention_out_bias) == meaning["biases"])
            and qk_norm == meaning["qk_norm"]
            and (sliding_window is None or meaning["windows"])
        )

    return [name for name, meaning in ARCHITECTURES.items() if fits(meaning)]


def _read_json(path) -> dict:
    path = Path(path)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"no config.json at {path}")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(raw, dict):
        raise ValueError(f"{path} must hold an object, got {type(raw).__name__}")
    return raw


def _architecture(raw: dict) -> str:
    model_type = raw.get("model_type")
    named = raw.get("architectures") or ([f"{model_type.capitalize()}ForCausalLM"] if model_type else [])
    for name in named:
        if name in ARCHITECTURES:
            return name
    raise ValueError(
        f"unknown architecture {', '.join(map(str, named)) or '(none named)'}: "
        f"this package knows {', '.join(ARCHITECTURES)}"
    )


def _refuse_unsupported(raw: dict, architecture: str):
    """Raises for what would load, run, and give other numbers than the model's authors meant."""
    rope = _rope_fields(raw)
    rotated = rope.get("partial_rotary_factor") or raw.get("partial_rotary_factor") or 1
    reasons = {
        "hidden_act other than silu": raw.get("hidden_act", "silu") not in ("silu", "swish"),
        "mlp_bias": raw.get("mlp_bias"),
        "quantization_config (quantized weights)": raw.get("quantization_config"),
        "partial_rotary_factor other than 1": rotated != 1,
        "rope parameters for each kind of layer": any(isinstance(v, dict) for v in rope.values()),
    }
    refused = [reason for reason, there in reasons.items() if there]
    if refused:
        raise ValueError(f"{architecture} with {', '.join(refused)} is not supported")


def _biases(raw: dict, rule) -> tuple[bool, bool]:
    return (bool(raw.get(rule)),) * 2 if isinstance(rule, str) else rule


def _rope_fields(raw: dict) -> dict:
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise ValueError(f"rope_scaling must be an object, got {rope!r}")
    return dict(rope)


def _rope(raw: dict) -> tuple[float, dict | None]:
    """Base and scaling, from either spelling: `rope_theta` with `rope_scaling`, or `rope_parameters`."""
    rope = _rope_fields(raw)
    theta = rope.pop("rope_theta", None) or raw.get("rope_theta") or 10_000.0
    older_name = rope.pop("type", "default")
    rope["rope_type"] = rope.get("rope_type") or older_name
    return theta, (None if rope["rope_type"] == "default" else rope)


def _sliding_window(raw: dict, architecture: str) -> int | None:
    """The window of every layer. A model with windows in some layers only is refused."""
    window = raw.get("sliding_window")
    if architecture == "LlamaForCausalLM" or window is None:
        return None
    if architecture == "MistralForCausalLM":
        return window
    if not raw.get("use_sliding_window"):
        return None
    windowed = [i >= raw["max_window_layers"] for i in range(raw.get("num_hidden_layers") or 0)]
    if raw.get("layer_types"):
        windowed = [kind == "sliding_attention" for kind in raw["layer_types"]]
    if any(windowed) and not all(windowed):
        raise ValueError(f"{architecture} with sliding windows in some layers only is not supported")
    return window if all(windowed) else None
