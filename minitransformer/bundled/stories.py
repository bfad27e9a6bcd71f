"""Short stories from a grammar, and the grammar's own parser.

A plot is a list of steps; a step is a list of alternative sentences, one of which is told (an empty one
leaves the step out). A slot such as {hero} is filled once and keeps its word for the whole story, so that
telling a story to the end means looking back at how it began.

Each slot but the two friends' has words of its own, and no sentence leaves open whether hero or friend is
meant: a model of 1M parameters then learns within half an hour which earlier word a slot repeats.
"""

import random
import re
from functools import cache

from minitransformer.bundled.words import ANIMALS, HOMES, LANDS, MOODS, NAMES, SHELTERS, THINGS

SLOTS = {
    "hero": NAMES,
    "friend": NAMES,
    "kin": ANIMALS,
    "folk": ANIMALS,
    "mood": MOODS,
    "trait": MOODS,
    "home": HOMES,
    "place": LANDS,
    "spot": SHELTERS,
    "thing": THINGS[::2],
    "gift": THINGS[1::2],
}
DIFFERENT = [("hero", "friend")]

OPENING = [
    ["Once there was a {mood} {kin} named {hero}."],
    ["{hero} lived near the {home}.", "The home of {hero} was the {home}."],
]
ENDING = [
    ["That night {hero} went back to the {home}.", "{hero} was happy to be home at the {home}."],
    ["{hero} the {kin} and {friend} the {folk} were friends from then on."],
]
MEETING = [
    ["One day {hero} met {friend}, a {trait} {folk}."],
    ["{friend} was on the way to the {place}.", "{friend} came from the {place}."],
]
PLOTS = {
    "lost": [
        ["But {friend} had lost a {thing}.", "But {friend} could not find a {thing}."],
        ["", "They looked in the {home} first.", "{hero} wanted to help."],
        ["At last they came to the {spot}."],
        ["There {hero} found the {thing}.", "The {thing} was there, and {hero} saw it."],
        ["{friend} thanked {hero} and gave {hero} a {gift}."],
    ],
    "trade": [
        ["Now {hero} had a {thing} and {friend} had a {gift}."],
        ["", "They both liked the {thing}.", "They both liked the {gift}."],
        ["So {hero} gave {friend} the {thing}."],
        ["And {friend} gave {hero} the {gift}."],
        ["They met again at the {spot}.", "They walked to the {spot} and sat down."],
    ],
    "storm": [
        ["Then a storm came over the {place}."],
        ["{hero} and {friend} ran to the {spot}.", "They hid in the {spot}."],
        ["", "It was dark, but {friend} had a {thing}.", "{hero} was {mood}, and {friend} was not."],
        ["In the {spot} they found a {gift}."],
        ["When the sun came back, {hero} kept the {gift}."],
    ],
}


def _steps(plot: str) -> list[list[str]]:
    return OPENING + MEETING + PLOTS[plot] + ENDING


def write_story(rng: random.Random) -> str:
    """A story of one of the plots."""
    while True:
        words = {slot: rng.choice(choices) for slot, choices in SLOTS.items()}
        if all(words[a] != words[b] for a, b in DIFFERENT):
            break
    sentences = [rng.choice(step) for step in _steps(rng.choice(list(PLOTS)))]
    return " ".join(s.format(**words) for s in sentences if s)


def is_story(text: str) -> bool:
    """True if the grammar could have written the text: known words, and each slot kept to the end."""
    return any(_parses(text.strip(), _steps(plot), {}) for plot in PLOTS)


def _parses(text: str, steps: list[list[str]], words: dict[str, str]) -> bool:
    """Whether the text is the given steps, told with `words` for the slots that are already filled."""
    if not steps:
        return text == "" and all(words.get(a) != words.get(b) for a, b in DIFFERENT if a in words)
    for sentence in steps[0]:
        match = _pattern(sentence).match(text)
        if match is None:
            continue
        told = match.groupdict()
        agrees = all(words.get(slot, word) == word for slot, word in told.items())
        if agrees and _parses(text[match.end() :].lstrip(), steps[1:], words | told):
            return True
    return False


@cache
def _pattern(sentence: str) -> re.Pattern:
    """A regular expression for one sentence; its groups are the slots, a slot named twice must agree."""
    pattern, seen = "", set()
    for text, slot in re.findall(r"([^{]*)(?:{(\w+)})?", sentence):
        pattern += re.escape(text)
        if slot:
            pattern += f"(?P={slot})" if slot in seen else f"(?P<{slot}>{'|'.join(SLOTS[slot])})\\b"
            seen.add(slot)
    return re.compile(pattern)
