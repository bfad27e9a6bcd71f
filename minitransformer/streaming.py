"""From token ids to text as they come: whole characters only, and never a part of a stop string."""

from collections.abc import Sequence

UNKNOWN = "\ufffd"  # what decoding gives for bytes that are no whole character
CONTEXT = 8  # tokens decoded again before a new one: a token's text can depend on those before it


class TextStream:
    """Takes one token at a time; gives out text once nothing that follows can change it.

    A character may be spread over several tokens, and a stop string over many. What could still become
    either is held back. Once a stop string is complete, `stopped` is True and the text has ended right
    before it. Of several stop strings the one complete first counts, so that the text does not depend
    on how it was cut into tokens. `tokenizer` is anything with `decode(ids) -> str`.
    """

    def __init__(self, tokenizer, stop: Sequence[str] = ()):
        self.tokenizer, self.stop = tokenizer, tuple(stop)
        self.stopped = False
        self._window: list[int] = []  # the last tokens
        self._given = 0  # how many characters of their text have left the decoder
        self._held = ""  # decoded, but perhaps the beginning of a stop string

    def push(self, token: int) -> str:
        """The text that this token made certain, often its own, sometimes none."""
        if self.stopped:
            return ""
        self._window.append(token)
        text = _settled(self.tokenizer.decode(self._window))
        piece, self._given = text[self._given :], max(self._given, len(text))
        if len(self._window) > 2 * CONTEXT:  # decode a bounded number of tokens at every step
            self._window = self._window[-CONTEXT:]
            self._given = len(_settled(self.tokenizer.decode(self._window)))
        return self._release(piece)

    def finish(self) -> str:
        """The rest, when no token follows: what was held back for a character or a stop string."""
        if self.stopped:
            return ""
        rest = self._release(self.tokenizer.decode(self._window)[self._given :])
        rest, self._held, self._window, self._given = rest + self._held, "", [], 0
        return rest

    def _release(self, piece: str) -> str:
        """All held text up to a stop string, or up to what may become one."""
        text = self._held + piece
        found = [(at + len(s), at) for s in self.stop if (at := text.find(s)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        hold = max((_overlap(text, s) for s in self.stop), default=0)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold]


def _settled(text: str) -> str:
    """Without the end that a further token may turn into a character.

    A character has at most four bytes, so at most three trailing U+FFFD can be the beginning of one.
    """
    unknown = len(text) - len(text.rstrip(UNKNOWN))
    return text[: len(text) - min(unknown, 3)]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop`, but not all of it, begins."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
