"""What a model is, in a few bytes: two workers compare theirs before any key travels."""

import json
from dataclasses import asdict
from hashlib import blake2b

import torch

from minitransformer.disaggregation.records import Fingerprint
from minitransformer.model import Transformer

MOST_HASHED = 4096  # numbers of one tensor


def fingerprint(model: Transformer) -> Fingerprint:
    """Of a model whose weights are loaded.

    At most MOST_HASHED numbers of each tensor, evenly spaced, are hashed: that tells one training from
    another in milliseconds, and is no proof against somebody who means to deceive.
    """
    config = asdict(model.config) | {"architecture": None}
    shape = (model.config.num_hidden_layers, 2, model.config.num_key_value_heads, model.config.head_dim)
    digest = blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().flatten()
        sampled = flat[:: max(1, flat.numel() // MOST_HASHED)].contiguous().cpu()
        digest.update(f"{name}{tuple(tensor.shape)}".encode() + sampled.view(torch.uint8).numpy().tobytes())
    return Fingerprint(
        config=json.dumps(config, sort_keys=True),
        dtype=str(model.dtype).removeprefix("torch."),
        weights=digest.hexdigest(),
        layout="layers {}, [{}, tokens, {}, {}]".format(*shape),
    )


def difference(theirs: Fingerprint, ours: Fingerprint) -> str:
    """Names what differs first; "" where nothing does."""
    if theirs.config != ours.config:
        return f"other model: {_differing_fields(theirs.config, ours.config)}"
    for name in ("dtype", "layout", "weights"):
        if getattr(theirs, name) != getattr(ours, name):
            return f"other {name}: {getattr(theirs, name):.80} against {getattr(ours, name)}"
    return ""


def _differing_fields(theirs: str, ours: str) -> str:
    try:
        a, b = json.loads(theirs), json.loads(ours)
        differing = [
            f"{name} {a.get(name)!r:.40} against {b[name]!r}" for name in b if a.get(name) != b[name]
        ]
    except (ValueError, AttributeError):
        return "its config is no JSON object"
    return ", ".join(differing[:3]) or "fields that are unknown here"
