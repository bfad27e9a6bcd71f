"""Where a checkpoint lies: with the package, in a folder, in the hub's local cache, or nowhere."""

from pathlib import Path

import pytest
from small_checkpoints import INDEX, MODEL, WEIGHTS, same_weights, saved, shard
from small_models import small_model

from minitransformer import checkpoint, hub, load_pretrained, save_pretrained


@pytest.fixture
def folder(tmp_path) -> Path:
    return saved(tmp_path)


def test_bundled_names_map_to_folders_of_the_package(folder, monkeypatch):
    package = Path(checkpoint.__file__).parent
    assert hub.BUNDLED["bundled"] == package / "bundled" / "weights" / "main"
    assert hub.BUNDLED["bundled-draft"] == package / "bundled" / "weights" / "draft"
    monkeypatch.setitem(hub.BUNDLED, "bundled", folder)
    assert same_weights(load_pretrained()[0], MODEL)
    monkeypatch.setitem(hub.BUNDLED, "bundled", folder / "gone")
    with pytest.raises(FileNotFoundError, match="'bundled'"):
        load_pretrained()


@pytest.fixture
def offline_hub(folder, tmp_path, monkeypatch):
    """A local hub cache that holds org/name, and no hub to ask."""
    constants = pytest.importorskip("huggingface_hub.constants")
    cache = tmp_path / "cache"
    snapshot = cache / "models--org--name" / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    blobs = cache / "models--org--name" / "blobs"
    snapshot.mkdir(parents=True), blobs.mkdir()
    for file in folder.iterdir():  # as the hub does it: snapshots link to blobs
        (blobs / file.name).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(blobs / file.name)
    refs = cache / "models--org--name" / "refs"
    refs.mkdir()
    (refs / "main").write_text(snapshot.name)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return snapshot


@pytest.mark.parametrize("sharded", [False, True])
def test_a_hub_id_loads_from_the_local_cache_without_a_network(folder, sharded, request):
    if sharded:
        shard(folder)
    request.getfixturevalue("offline_hub")
    assert same_weights(load_pretrained("org/name")[0], MODEL)


def test_a_hub_id_that_is_not_cached_says_what_to_do(offline_hub):
    with pytest.raises(FileNotFoundError, match=r"'org/other'.*cache.*cannot be reached"):
        load_pretrained("org/other")


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        ("GatedRepoError", 403, "asks for consent"),
        ("RepositoryNotFoundError", 404, "the hub answers: first line"),
        ("HfHubHTTPError", 500, "the hub answers: first line"),
    ],
)
def test_what_the_hub_refuses_is_told_in_a_line(error, status, message, monkeypatch):
    import httpx
    import huggingface_hub

    response = httpx.Response(status, request=httpx.Request("GET", "https://hub"))

    def refuse(*args, **kwargs):
        raise getattr(huggingface_hub.errors, error)("first line\nsecond line", response=response)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(FileNotFoundError, match=message) as caught:
        load_pretrained("org/name")
    assert "\n" not in str(caught.value)


def test_a_folder_comes_before_the_hub(folder, offline_hub, monkeypatch):
    monkeypatch.chdir(folder.parent)
    save_pretrained(small_model(seed=9), "org/name")
    assert not same_weights(load_pretrained("org/name")[0], MODEL)


def test_nothing_that_runs_is_ever_fetched(monkeypatch, folder):
    import huggingface_hub

    asked = {}
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda repo, **k: asked.update(k, repo=repo) or str(folder)
    )
    load_pretrained("org/name")
    published = [
        *("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", WEIGHTS, INDEX),
        *("model-00001-of-00002.safetensors", "pytorch_model.bin", "consolidated.00.pth", "model.pt"),
        *("modeling_custom.py", "consolidated.safetensors", "original/params.json", "model-1.bin"),
    ]
    taken = list(huggingface_hub.utils.filter_repo_objects(published, allow_patterns=asked["allow_patterns"]))
    assert asked["repo"] == "org/name" and taken == published[:7]
