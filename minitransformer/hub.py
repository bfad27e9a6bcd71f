"""Where a checkpoint lies: with the package, in a folder, or on the Hugging Face hub."""

import os
import re
from pathlib import Path

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
BUNDLED = {
    "bundled": Path(__file__).parent / "bundled" / "weights" / "main",
    "bundled-draft": Path(__file__).parent / "bundled" / "weights" / "draft",
}
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}
# All that is ever fetched. No pickles, and not the second copies that some repositories keep.
FETCHED = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
]


class PickledWeights(ValueError):
    """Weights in a form that would run as a program."""

    def __init__(self, path: Path, names: str = ""):
        super().__init__(
            f"{path} holds pickled weights{names and f' ({names})'}. A pickle can run any program when it "
            "is opened, so it is refused: where you trust it, save the model as safetensors first"
        )


def find_checkpoint(path_or_id: str | os.PathLike) -> Path:
    """The folder of "bundled", "bundled-draft", a path, or a hub id ("org/name").

    A folder of that name comes before the hub. What the hub has is fetched once and then found in its
    local cache, with or without a network. Raises FileNotFoundError, ValueError for a file.
    """
    if path_or_id in BUNDLED:
        return _existing(BUNDLED[path_or_id], f"{path_or_id!r}, which this copy of the package lacks")
    path = Path(path_or_id)
    if path.suffix in PICKLES and path.is_file():
        raise PickledWeights(path)
    if path.is_file():
        raise ValueError(f"{path} is a file: give the folder with config.json and model.safetensors")
    if not path.exists() and HUB_ID.fullmatch(str(path_or_id)):
        return _fetched(str(path_or_id))
    return _existing(path, f"{str(path_or_id)!r}")


def _existing(folder: Path, what: str) -> Path:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no checkpoint {what}: {folder} is no folder. Give a folder, a hub id such as "
            f'"org/name", or one of {", ".join(BUNDLED)}'
        )
    return folder


def _fetched(repo: str) -> Path:
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(repo, allow_patterns=FETCHED))
    except errors.GatedRepoError:
        reason = "its owner asks for consent first: give it on its page, then log in with `hf auth login`"
    except errors.HfHubHTTPError as error:
        reason = f"the hub answers: {str(error).splitlines()[0]}"
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        reason = "it is neither a folder nor in the hub's local cache, and the hub cannot be reached"
    raise FileNotFoundError(f"no checkpoint {repo!r}: {reason}")
