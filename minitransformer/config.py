"""The shape of a model, in the field names of public `config.json` files.

Knows nothing of tensors: everything that prices, plans or draws a model needs only this file.
"""

import math
from dataclasses import dataclass, field, fields

from minitransformer.families import fitting_architectures, read_config, write_config

ROPE_FIELDS = {  # what each kind of rope scaling needs to know
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


@dataclass(frozen=True)
class ModelConfig:
    """Shape and constants of a decoder-only transformer.

    Raises ValueError, with the numbers, for a shape that no model can have.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None  # None: as many as query heads (MHA)
    head_dim: int | None = None  # None: hidden_size / num_attention_heads
    max_position_embeddings: int = 2048
    rope_theta: float = 10_000.0
    # {"rope_type": "linear" | "llama3", "factor": ..., ...}; a dict can't be hashed, the rest can
    rope_scaling: dict | None = field(default=None, hash=False)
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    attention_bias: bool = False  # on the q, k and v projections (Qwen2)
    attention_out_bias: bool = False  # on the output projection (Llama with attention_bias)
    qk_norm: bool = False  # RMSNorm over each query and key head (Qwen3)
    sliding_window: int | None = None  # each token sees only this many last tokens (Mistral 0.1)
    # The public family to save it as, where that has the features above; else the first family that has.
    architecture: str | None = field(default=None, compare=False)

    def __post_init__(self):
        if self.num_key_value_heads is None:
            object.__setattr__(self, "num_key_value_heads", self.num_attention_heads)
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"):
            self._require_positive(name)
        for name in ("num_attention_heads", "num_key_value_heads", "max_position_embeddings"):
            self._require_positive(name)
        if self.sliding_window is not None:
            self._require_positive("sliding_window")
        for name in ("rope_theta", "rms_norm_eps"):
            _require_number(name, getattr(self, name))
        self._settle_heads()
        self._check_rope()

    def _require_positive(self, name: str):
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive whole number, got {value!r}")

    def _settle_heads(self):
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        if self.head_dim is None:
            if self.hidden_size % self.num_attention_heads:
                raise ValueError(
                    f"hidden_size ({self.hidden_size}) is not a multiple of num_attention_heads "
                    f"({self.num_attention_heads}): give head_dim"
                )
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        self._require_positive("head_dim")
        if self.head_dim % 2:
            raise ValueError(f"head_dim ({self.head_dim}) must be even: RoPE rotates pairs")

    def _check_rope(self):
        scaling = self.rope_scaling or {}
        rope_type = scaling.get("rope_type", "default")
        if rope_type not in ROPE_FIELDS:
            raise ValueError(
                f"rope scaling {rope_type!r} is not supported: this package knows {', '.join(ROPE_FIELDS)}"
            )
        for name in ROPE_FIELDS[rope_type]:
            if name not in scaling:
                raise ValueError(f"rope_scaling of type {rope_type!r} lacks {name}")
            _require_number(f"rope_scaling[{name!r}]", scaling[name])
        if rope_type == "llama3" and scaling["low_freq_factor"] >= scaling["high_freq_factor"]:
            raise ValueError(f"rope_scaling needs low_freq_factor < high_freq_factor, got {scaling}")

    @property
    def group_size(self) -> int:
        """Query heads that share one key/value head: H / G."""
        return self.num_attention_heads // self.num_key_value_heads

    @property
    def q_size(self) -> int:
        """Width of all query heads together: H * D."""
        return self.num_attention_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key (or value) heads together: G * D."""
        return self.num_key_value_heads * self.head_dim

    @property
    def num_parameters(self) -> int:
        """Weights in the whole model, a tied embedding counted once."""
        attention = 2 * self.hidden_size * (self.q_size + self.kv_size)
        attention += self.attention_bias * (self.q_size + 2 * self.kv_size)
        attention += self.attention_out_bias * self.hidden_size + self.qk_norm * 2 * self.head_dim
        mlp = 3 * self.hidden_size * self.intermediate_size
        layer = attention + mlp + 2 * self.hidden_size
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return self.num_hidden_layers * layer + embeddings + self.hidden_size

    @classmethod
    def from_hf(cls, path_or_dict) -> "ModelConfig":
        """Reads a public `config.json`: a dict, the file, or the folder that holds it.

        Raises FileNotFoundError where there is none, ValueError for an unknown architecture or for
        a feature this package would silently get wrong.
        """
        given = read_config(path_or_dict)
        missing = [f.name for f in fields(cls) if f.default is REQUIRED and given.get(f.name) is None]
        if missing:
            raise ValueError(f"config.json lacks {', '.join(missing)}")
        return cls(**{f.name: given[f.name] for f in fields(cls) if f.name in given})

    def to_hf(self) -> dict:
        """The dict that `config.json` holds; `from_hf` reads it back to an equal config.

        Raises ValueError for a shape that no public architecture has.
        """
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        features = (self.attention_bias, self.attention_out_bias, self.qk_norm, self.sliding_window)
        fitting = fitting_architectures(*features)
        if not fitting:
            raise ValueError(
                "no public architecture has attention_bias={}, attention_out_bias={}, qk_norm={} and "
                "sliding_window={}".format(*features)
            )
        return write_config(given, self.architecture if self.architecture in fitting else fitting[0])


REQUIRED = fields(ModelConfig)[0].default


def _require_number(name: str, value):
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ValueError(f"{name} must be a number above 0, got {value!r}")
