"""A live token stream: a prompt goes in, the answer comes out token by token, and every token is timed.

The first token ends prefill (orange), each later one is a decode step (blue). The stream is shown at a
pace that eyes can follow; waiting and drawing are not part of the times.
"""

import html
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import ipywidgets
import plotly.graph_objects as go
from IPython.display import display

from minitransformer.course.examples import Example, examples
from minitransformer.course.figures import figure_bundle, is_static
from minitransformer.course.live_figure import LiveFigure
from minitransformer.course.palette import DECODE, PREFILL, TEXT, figure, shade
from minitransformer.course.tables import number
from minitransformer.generate import SamplingParams, stream_text
from minitransformer.model import Transformer

PACES = {"25 tokens a second": 0.04, "5 tokens a second": 0.2, "as fast as they come": 0.0}


@dataclass
class Answer:
    """A prompt, what came, and how long the model took for each token (s)."""

    prompt: str
    prompt_tokens: int
    pieces: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def ttft(self) -> float:
        """Time to first token: all of prefill, and the choice of one token."""
        return self.seconds[0]

    @property
    def tpot(self) -> float:
        """Time per output token after the first, on average. NaN where one token was all."""
        later = self.seconds[1:]
        return sum(later) / len(later) if later else float("nan")


def stream(
    model: Transformer,
    tokenizer,
    prompt: str,
    *,
    max_tokens: int = 120,
    on_piece: Callable[[Answer], None] | None = None,
) -> Answer:
    """Answers greedily. `on_piece` sees the answer grow; the clock stands still while it looks."""
    ids = tokenizer.encode(prompt)
    answer = Answer(prompt, len(ids))
    room = model.config.max_position_embeddings - len(ids)
    if room < 1:
        raise ValueError(f"the prompt has {len(ids)} tokens, the model's window is {len(ids) + room}")
    sampling = SamplingParams(max_tokens=min(max_tokens, room))
    for piece in _timed(model, tokenizer, ids, sampling, answer):
        answer.pieces.append(piece)
        if on_piece is not None:
            on_piece(answer)
    return answer


def _timed(model, tokenizer, ids: list[int], sampling: SamplingParams, answer: Answer) -> Iterator[str]:
    since = time.perf_counter()

    def stamp(_token: int):
        nonlocal since
        now = time.perf_counter()
        answer.seconds.append(now - since)
        since = now

    for piece in stream_text(model, tokenizer, ids, sampling, on_token=stamp):
        yield piece
        since = time.perf_counter()  # what the reader did with the piece is not the model's time


def answer_html(answer: Answer) -> str:
    """The prompt in grey, the answer in boxes: the first piece in prefill's colour, the rest in decode's."""
    boxes = "".join(
        f"<span style='background: {shade(DECODE if i else PREFILL, 0.28)}; border-radius: 3px; "
        f"margin-right: 1px'>{html.escape(piece)}</span>"
        for i, piece in enumerate(answer.pieces)
    )
    prompt = f"<span style='color: {TEXT}'>{html.escape(answer.prompt)}</span>"
    style = "white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.6; font-size: 14px"
    return f"<div style='{style}'>{prompt}{boxes}</div>"


def token_times(answer: Answer) -> go.Figure:
    """A bar for each token: how long the model took for it."""
    if not answer.seconds:
        return figure(title="no token yet")
    ms = [1000 * s for s in answer.seconds]
    bars = [
        go.Bar(
            x=[1],
            y=ms[:1],
            name=f"prefill: reads {answer.prompt_tokens} tokens, gives 1",
            marker_color=PREFILL,
        ),
        go.Bar(
            x=list(range(2, len(ms) + 1)), y=ms[1:], name="decode: gives 1 token a step", marker_color=DECODE
        ),
    ]
    title = f"TTFT {number(answer.ttft, 's')}, then {number(answer.tpot, 's')} a token (TPOT)"
    fig = figure(*bars, title=title, barmode="overlay", height=300)
    return fig.update_layout(xaxis_title="token of the answer", yaxis_title="ms")


class TokenStream:
    """The widget: choose or write a prompt, press Answer, watch."""

    def __init__(self, model: Transformer, tokenizer, prompts: dict[str, Example]):
        self.model, self.tokenizer, self.prompts = model, tokenizer, prompts
        style = {"description_width": "initial"}
        self.choice = ipywidgets.Dropdown(options=list(prompts), description="kind of text", style=style)
        self.pace = ipywidgets.Dropdown(options=PACES, description="show", style=style)
        self.button = ipywidgets.Button(description="Answer", button_style="primary")
        self.prompt = ipywidgets.Textarea(layout={"width": "100%", "height": "80px"})
        self.text, self.figure = ipywidgets.HTML(), LiveFigure(figure(title="no token yet", height=300))
        self.choice.observe(lambda _: self._take_prompt(), names="value")
        self.button.on_click(lambda _: self.answer())
        self._take_prompt()

    def widget(self) -> ipywidgets.Widget:
        row = ipywidgets.Box([self.choice, self.pace, self.button], layout={"flex_flow": "row wrap"})
        return ipywidgets.VBox([row, self.prompt, self.text, self.figure])

    def _take_prompt(self):
        self.prompt.value = self.prompts[self.choice.value].prompt

    def answer(self) -> Answer | None:
        """Streams an answer to the prompt in the field; what can't be answered is said in words."""
        self.button.disabled = True
        try:
            answer = stream(self.model, self.tokenizer, self.prompt.value, on_piece=self._show_piece)
        except ValueError as error:
            self.text.value = html.escape(str(error))
            return None
        finally:
            self.button.disabled = False
        self.figure.show(token_times(answer))
        return answer

    def _show_piece(self, answer: Answer):
        self.text.value = answer_html(answer)
        time.sleep(self.pace.value)


def token_stream(model: Transformer, tokenizer, prompts: dict[str, Example] | None = None):
    """Shows the stream, with the first prompt answered at once.

    Readers without a kernel get every prompt answered, and the times of the first.
    """
    prompts = prompts or examples()
    stream(model, tokenizer, next(iter(prompts.values())).prompt, max_tokens=2)  # wakes threads and caches
    if not is_static():
        live = TokenStream(model, tokenizer, prompts)
        display(live.widget())
        live.answer()
        return
    answers = {kind: stream(model, tokenizer, example.prompt) for kind, example in prompts.items()}
    for kind, answer in answers.items():
        words = {
            "text/html": f"<b>{kind}</b>{answer_html(answer)}",
            "text/plain": answer.prompt + answer.text,
        }
        display(words, raw=True)
    display(figure_bundle(token_times(next(iter(answers.values()))), "the first bar stands out"), raw=True)
