"""The tokenizer of a checkpoint: text to ids and back, and which ids begin and end a text."""

import json

import pytest
import torch
from small_checkpoints import MODEL, edit_config, refused, small_tokenizer
from tokenizers import processors

from minitransformer import load_pretrained, save_pretrained
from minitransformer.tokenizer import Tokenizer


def test_the_tokenizer_comes_back_with_its_special_ids(tmp_path):
    save_pretrained(MODEL, tmp_path, small_tokenizer(stop_ids=[2], settings={"chat_template": "{{ x }}"}))
    tokenizer = load_pretrained(tmp_path)[1]
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.stop_ids) == (0, 1, (1, 2))
    assert tokenizer.vocab_size == 259 and tokenizer.token_id("<|end|>") == 2
    assert tokenizer.settings["chat_template"] == "{{ x }}"
    save_pretrained(MODEL, tmp_path)  # without one: the folder keeps its own
    assert load_pretrained(tmp_path)[1].stop_ids == (1, 2)


def test_a_chat_template_may_lie_in_a_file_of_its_own(tmp_path):
    save_pretrained(MODEL, tmp_path, small_tokenizer())
    (tmp_path / "chat_template.jinja").write_text("{{ messages }} …", encoding="utf-8")
    assert load_pretrained(tmp_path)[1].settings["chat_template"] == "{{ messages }} …"


@pytest.mark.parametrize("text", ["", "plain", "Grüße, 你好 🙂\n\ttabs", "a</s>b"])
def test_any_text_comes_back(text):
    tokenizer = small_tokenizer()
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=False) == text
    assert tokenizer.decode(torch.tensor(tokenizer.encode("ab"))) == "ab"


def test_special_tokens_are_added_and_skipped():
    tokenizer = small_tokenizer()
    tokenizer.backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    ids = tokenizer.encode("ab")
    assert ids[0] == 0 and tokenizer.encode("ab", add_special_tokens=False) == ids[1:]
    assert tokenizer.decode(ids) == "ab" and tokenizer.decode(ids, skip_special_tokens=False) == "<s>ab"


def test_stop_ids_come_from_every_file_that_names_them(tmp_path):
    save_pretrained(MODEL, tmp_path, small_tokenizer())
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text(json.dumps({"bos_token": None, "eos_token": {"content": "</s>"}}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7]}))
    edit_config(tmp_path, eos_token_id=9)  # it had 1, as eos_token still says
    tokenizer = load_pretrained(tmp_path)[1]
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.stop_ids) == (None, 1, (1, 2, 7, 9))


def test_a_tokenizer_that_truncates_does_not():
    backend = small_tokenizer().backend
    backend.enable_truncation(max_length=3)
    backend.enable_padding(length=10)
    assert len(Tokenizer(backend).encode("hello")) == 5


def test_broken_tokenizers_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no token '<eos>'"):
        small_tokenizer(eos_token="<eos>")
    save_pretrained(MODEL, tmp_path, small_tokenizer())
    (tmp_path / "tokenizer.json").write_text("{")
    refused(tmp_path, "tokenizer.json")


def test_our_tokenizer_opens_in_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    ours = small_tokenizer(stop_ids=[2])
    save_pretrained(MODEL, tmp_path, ours)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "Grüße, 你好 🙂"
    assert theirs.encode(text, add_special_tokens=False) == ours.encode(text)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (ours.bos_id, ours.eos_id)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert (config.bos_token_id, config.eos_token_id) == (0, [1, 2])
