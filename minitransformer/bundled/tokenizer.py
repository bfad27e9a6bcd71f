"""Makes the tokenizer: byte-level BPE, digits apart, trained on the generator's own text."""

import random
from collections.abc import Iterator

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from minitransformer.bundled import tasks
from minitransformer.tokenizer import Tokenizer

VOCAB_SIZE = 1024
BOS, EOS = "<bos>", "<eos>"


def make_tokenizer(seed: int = 0) -> Tokenizer:
    """A tokenizer in which any text is representable and every word of the bundled world is one token."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(random.Random(seed)), trainer)
    begin = (BOS, tokenizer.token_to_id(BOS))
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[begin])
    return Tokenizer(tokenizer, bos_token=BOS, eos_token=EOS)


def _corpus(rng: random.Random, size: int = 3000) -> Iterator[str]:
    for i in range(size):
        yield tasks.story(rng).answer
        documents = [tasks.write_sum(rng, digits=1 + i % tasks.MAX_DIGITS, steps=i % 2 == 0)]
        documents += [tasks.write_notes(rng, items=20), *tasks.write_recall(rng, items=5)]
        yield from (d.prompt + d.answer for d in documents)
