"""Text to token ids and back, as a checkpoint's `tokenizer.json` says.

The work is done by the `tokenizers` library; this class adds what a model needs to know beside it:
which ids begin and end a text. It knows nothing of models.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import tokenizers

TOKENIZER, SETTINGS, CHAT = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
GENERATION, CONFIG = "generation_config.json", "config.json"


class Tokenizer:
    """A vocabulary with the ids that begin (`bos_id`) and end (`eos_id`, `stop_ids`) a text.

    `backend` is a `tokenizers.Tokenizer`. `bos_token` and `eos_token` are its special tokens by name,
    or None. `stop_ids` holds eos_id and whatever else ends an answer (a chat model has several).
    Raises ValueError for a name or an id that the vocabulary does not have.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        bos_token: str | None = None,
        eos_token: str | None = None,
        stop_ids: Iterable[int] = (),
        settings: dict | None = None,
    ):
        # A file may come with truncation or padding set for training; neither may touch a prompt.
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self.settings = dict(settings or {}) | {"bos_token": bos_token, "eos_token": eos_token}
        self.bos_id, self.eos_id = self._id(bos_token), self._id(eos_token)
        ends = {*stop_ids} | ({self.eos_id} - {None})
        self.stop_ids = tuple(sorted(ends))

    @classmethod
    def from_folder(cls, folder) -> "Tokenizer | None":
        """The tokenizer of a checkpoint folder; None where it has no `tokenizer.json`.

        bos and eos are named in tokenizer_config.json; generation_config.json and config.json may list
        more ids that end a text. A chat template lies in tokenizer_config.json or in a file of its own.
        """
        path = Path(folder) / TOKENIZER
        if not path.exists():
            return None
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises a bare Exception
            raise ValueError(f"{path} is no tokenizer that the tokenizers library reads: {error}") from None
        settings = _read_json(path.with_name(SETTINGS))
        if path.with_name(CHAT).exists():
            settings.setdefault("chat_template", path.with_name(CHAT).read_text(encoding="utf-8"))
        ends = [_read_json(path.with_name(name)).get("eos_token_id") for name in (GENERATION, CONFIG)]
        stop_ids = {i for end in ends for i in (end if isinstance(end, list) else [end]) if i is not None}
        bos_token, eos_token = (_content(settings.get(key)) for key in ("bos_token", "eos_token"))
        return cls(backend, bos_token=bos_token, eos_token=eos_token, stop_ids=stop_ids, settings=settings)

    def save(self, folder):
        """Writes tokenizer.json, tokenizer_config.json and generation_config.json (the stop ids).

        The `transformers` library opens them too.
        """
        folder = Path(folder)
        self.backend.save(str(folder / TOKENIZER))
        _write_json(folder / SETTINGS, {"tokenizer_class": "PreTrainedTokenizerFast"} | self.settings)
        _write_json(folder / GENERATION, self.special_ids())

    def special_ids(self) -> dict:
        """bos and stop ids under the names that public config files give them."""
        ends = list(self.stop_ids)
        return {"bos_token_id": self.bos_id, "eos_token_id": ends[0] if len(ends) == 1 else ends or None}

    @property
    def vocab_size(self) -> int:
        """Tokens with a meaning; a model's own vocab_size may be rounded up beyond it."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text, with what the checkpoint puts around it (often bos) unless told not to."""
        return self.backend.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids. Bytes that are no whole character (yet) become U+FFFD."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)

    def token_id(self, token: str) -> int | None:
        """The id of one token by its name, None where there is none."""
        return self.backend.token_to_id(token)

    def _id(self, token: str | None) -> int | None:
        found = None if token is None else self.token_id(token)
        if token is not None and found is None:
            raise ValueError(f"the vocabulary has no token {token!r}")
        return found


def _content(token) -> str | None:
    """A special token's text: older files write {"content": ...} where newer ones write a string."""
    return token.get("content") if isinstance(token, dict) else token


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None


def _write_json(path: Path, content: dict):
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
