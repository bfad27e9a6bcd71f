"""Checkpoints in the public format: config.json + safetensors + tokenizer.json <-> Transformer.

Everything about a checkpoint is checked against the model before a single weight is read, and weights
are read one tensor at a time into their place, so that loading needs the model's own memory and little
more. Nothing here unpickles: a pickle is a program, safetensors is numbers.
"""

import json
import os
import shutil
import tempfile
from functools import reduce
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from minitransformer.config import ModelConfig
from minitransformer.hub import PICKLES, PickledWeights, find_checkpoint
from minitransformer.layers import RotaryEmbedding
from minitransformer.model import Transformer
from minitransformer.tokenizer import Tokenizer

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Stored(NamedTuple):
    """One tensor of a checkpoint: where it lies and what its file's header says of it."""

    file: Path
    shape: tuple[int, ...]
    dtype: str  # as safetensors spells it: "F32", "BF16", ...


def load_pretrained(
    path_or_id: str | os.PathLike = "bundled",
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    attention: str = "sdpa",
) -> tuple[Transformer, Tokenizer | None]:
    """A model with its weights, and its tokenizer (None where the checkpoint has no tokenizer.json).

    path_or_id  "bundled", "bundled-draft", a folder, or a hub id such as "Qwen/Qwen3-0.6B"
    dtype       of the weights; None: as they are stored
    device      where they go; None: torch's default device

    Raises FileNotFoundError for what is not there, ValueError for what is there but not right: a missing,
    spare or misshapen tensor, a truncated file, an unknown architecture, pickled weights. Each is named.
    """
    if dtype is not None and dtype not in DTYPES.values():
        raise ValueError(f"dtype={dtype!r}: weights are one of {', '.join(map(str, DTYPES.values()))}")
    folder = find_checkpoint(path_or_id)
    config = ModelConfig.from_hf(folder)
    tokenizer = Tokenizer.from_folder(folder)
    with torch.device("meta"):  # shapes without memory
        model = Transformer(config, attention=attention)
    stored = stored_tensors(folder)
    _require_match(folder, model, stored)
    names = {name: public_name(name) for name in model.state_dict()}
    dtype = dtype or widest_dtype([stored[public] for public in names.values()])
    place = {"device": device or torch.get_default_device(), "dtype": dtype}
    weights = {n: read_tensor(stored, public).to(**place, copy=True) for n, public in names.items()}
    model.load_state_dict(weights, assign=True)  # they become the model's own: nothing is there twice
    model.rotary = RotaryEmbedding(config).to(place["device"])
    return model.eval(), tokenizer


def save_pretrained(model: Transformer, path: str | os.PathLike, tokenizer: Tokenizer | None = None):
    """Writes a checkpoint that `load_pretrained` and the `transformers` library open.

    All files are written beside their places first and moved there at the end: when saving fails, a
    checkpoint that was there before is whole. Without a `tokenizer` the folder keeps the one it has.
    """
    folder = Path(path).resolve()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: a checkpoint is a folder")
    folder.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=".saving-", dir=folder))
    try:
        tensors = {public_name(n): t.detach().contiguous() for n, t in model.state_dict().items()}
        save_file(tensors, staged / WEIGHTS, metadata={"format": "pt"})
        if tokenizer is not None:
            tokenizer.save(staged)
        (staged / CONFIG).write_text(json.dumps(_config_json(model, tokenizer), indent=2) + "\n")
        # safetensors writes for the owner's eyes only; as readable as any other file of this user instead
        (staged / WEIGHTS).chmod((staged / CONFIG).stat().st_mode)
        _move_into_place(staged, folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def public_name(name: str) -> str:
    """The name that a tensor of ours has in public checkpoints."""
    return name if name.startswith("lm_head.") else f"model.{name}"


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of a checkpoint by name, from the headers of its files. Reads no weights."""
    if (folder / WEIGHTS).exists():
        return _header(folder / WEIGHTS)
    if (folder / INDEX).exists():
        return _sharded(folder)
    pickles = sorted(f.name for f in folder.iterdir() if f.suffix in PICKLES)
    if pickles:
        raise PickledWeights(folder, _some(pickles))
    raise FileNotFoundError(f"{folder} has neither {WEIGHTS} nor {INDEX}")


def widest_dtype(tensors: list[Stored]) -> torch.dtype:
    """The dtype that holds all of these; usually they have but one."""
    return reduce(torch.promote_types, (DTYPES[s.dtype] for s in tensors))


def read_tensor(stored: dict[str, Stored], name: str) -> torch.Tensor:
    # The file is opened anew for each tensor: its mapped pages leave memory with the handle.
    with safe_open(stored[name].file, "pt") as file:
        return file.get_tensor(name)


def _header(path: Path) -> dict[str, Stored]:
    try:
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {n: Stored(path, tuple(s.get_shape()), s.get_dtype()) for n, s in slices.items()}
    except SafetensorError as error:
        raise ValueError(f"{path} is no whole safetensors file: {error}") from None


def _sharded(folder: Path) -> dict[str, Stored]:
    """The tensors of several files, which must be those that the index promises."""
    promised = _index(folder)
    shards = sorted(set(promised.values()))
    absent = [name for name in shards if not (folder / name).exists()]
    if absent:
        raise FileNotFoundError(f"{folder} lacks {_some(absent)}, which {INDEX} names")
    stored = {}
    for shard in shards:
        found = _header(folder / shard)
        expected = {name for name, file in promised.items() if file == shard}
        if found.keys() != expected:
            wrong = _some(sorted(found.keys() ^ expected))
            raise ValueError(f"{folder / shard} and {INDEX} do not agree about {wrong}")
        stored |= found
    return stored


def _index(folder: Path) -> dict[str, str]:
    """Tensor name -> file name, from the index of a sharded checkpoint."""
    try:
        promised = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        files = set(promised.values())
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f'{folder / INDEX} is no index: it needs {{"weight_map": {{name: file}}}}') from None
    outside = [repr(f) for f in files if not _is_plain_name(f)]
    if outside:
        raise ValueError(f"{folder / INDEX} names {_some(sorted(outside))}: shards lie in its own folder")
    return promised


def _is_plain_name(file) -> bool:
    return isinstance(file, str) and Path(file).name == file and file not in ("", "..") and "\\" not in file


def _require_match(folder: Path, model: Transformer, stored: dict[str, Stored]):
    """Raises ValueError unless the checkpoint holds exactly the model's tensors."""
    expected = {public_name(n): tuple(t.shape) for n, t in model.state_dict().items()}
    found = {n: s for n, s in stored.items() if not n.endswith("rotary_emb.inv_freq")}  # computed here
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    if model.config.tie_word_embeddings and head in found and embedding in found:
        if not torch.equal(read_tensor(stored, head), read_tensor(stored, embedding)):
            raise ValueError(f"{folder}: config.json ties {head} to {embedding}, but the two differ")
        del found[head]
    misshapen = [
        f"{n} is {list(found[n].shape)} instead of {list(shape)}"
        for n, shape in expected.items()
        if n in found and found[n].shape != shape
    ]
    odd = [f"{n} ({s.dtype})" for n, s in found.items() if n in expected and s.dtype not in DTYPES]
    problems = {
        "missing tensors": [n for n in expected if n not in found],
        "spare tensors": [n for n in found if n not in expected],
        "wrong shapes": misshapen,
        f"dtypes other than {', '.join(DTYPES)}": odd,
    }
    told = [f"{what}: {_some(names)}" for what, names in problems.items() if names]
    if told:
        raise ValueError(f"{folder} does not fit its config.json. " + "; ".join(told))


def _some(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _config_json(model: Transformer, tokenizer: Tokenizer | None) -> dict:
    # Ids left out would stand for the family's defaults, which are other tokens.
    ids = tokenizer.special_ids() if tokenizer else {"bos_token_id": None, "eos_token_id": None}
    return model.config.to_hf() | {"torch_dtype": str(model.dtype).removeprefix("torch.")} | ids


def _move_into_place(staged: Path, folder: Path):
    """Swaps the staged files for those of the old checkpoint; puts the old ones back if that fails.

    config.json leaves first and comes last: a process killed in between leaves a folder that does not
    load, never a mixture that does.
    """
    old = staged / "old"
    old.mkdir()
    new = [f.name for f in staged.iterdir() if f.is_file() and f.name != CONFIG] + [CONFIG]
    placed = []
    try:
        for name in _replaced_by(new, folder):
            os.replace(folder / name, old / name)
        for name in new:
            os.replace(staged / name, folder / name)
            placed.append(folder / name)
    except BaseException:
        for file in placed:
            file.unlink()
        for file in old.iterdir():
            os.replace(file, folder / file.name)
        raise


def _replaced_by(new: list[str], folder: Path) -> list[str]:
    """Files of the old checkpoint that must go: those with new versions, and shards no longer read."""
    shards = sorted(set(_index(folder).values())) if (folder / INDEX).exists() else []
    names = [CONFIG, *(n for n in new if n != CONFIG), INDEX, *shards]
    return [name for name in dict.fromkeys(names) if (folder / name).exists()]
