"""What every lesson imports first: numbers in words, predictions, figures and their static forms."""

import base64
import json
import math

import plotly.graph_objects as go
import pytest

from minitransformer.course import figures, palette, predictions, tables
from minitransformer.course.predictions import Guess, distance, parse


@pytest.fixture
def shown(monkeypatch):
    """Everything that was displayed, as dicts of mime types (or the objects themselves)."""
    seen = []

    class Handle:
        def update(self, content, raw=False):
            seen.append(content)

    def display(content, raw=False, display_id=False):
        seen.append(content)
        return Handle() if display_id else None

    for module in (figures, predictions, tables):
        monkeypatch.setattr(module, "display", display)
    monkeypatch.delenv("COURSE_STATIC", raising=False)
    return seen


def contrast(first: str, second: str) -> float:
    """The contrast ratio of WCAG 2.1, 1 to 21."""

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_text_is_readable_on_light_and_dark_pages():
    assert contrast("#000000", "#FFFFFF") == pytest.approx(21)
    assert min(contrast(palette.TEXT, page) for page in ("#FFFFFF", "#111111")) > 4
    layout = palette.TEMPLATE.layout
    assert layout.paper_bgcolor.endswith(", 0)") and layout.plot_bgcolor.endswith(", 0)")


def test_phases_and_limits_have_colours_of_their_own():
    meanings = [
        palette.PREFILL,
        palette.DECODE,
        palette.COMPUTE,
        palette.MEMORY,
        palette.TRANSFER,
        palette.IDLE,
    ]
    assert len(set(meanings)) == 6
    assert palette.shade("#0072B2", 0.5) == "rgba(0, 114, 178, 0.5)"


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (2_048_000, "B", "2.048 MB"),
        (2_048_000, "", "2,048,000"),
        (0.0123, "s", "12.3 ms"),
        (123.4, "s", "123.4 s"),
        (1e-12, "s", "0.001 ns"),
        (0, "B", "0 B"),
        (-3e9, "FLOP/s", "-3 GFLOP/s"),
        (math.inf, "s", "inf s"),
        (3.14159, "", "3.142"),
        (None, "B", "-"),
        ("keys", "", "keys"),
    ],
)
def test_numbers_are_written_for_people(value, unit, text):
    assert tables.number(value, unit) == text


def test_table_escapes_its_cells_and_lines_up_its_text(shown):
    tables.table([["<b>", 1], ["longer", 1000]], header=["what", "n"])
    bundle = shown[0]
    assert "&lt;b&gt;" in bundle["text/html"] and "<b>" not in bundle["text/html"]
    assert len({len(line) for line in bundle["text/plain"].splitlines()}) == 1
    with pytest.raises(ValueError, match="as many cells"):
        tables.table([[1, 2], [3]])


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("2048000", "", 2_048_000),
        ("2,048,000", "B", 2_048_000),
        ("2.048 MB", "B", 2_048_000),
        ("2.048 mb", "B", 2_048_000),
        ("2 Mi", "B", 2**21),
        ("12 ms", "s", 0.012),
        ("12m", "", 12e6),
        ("2*4*2*32*4*1000", "B", 2_048_000),
        ("-(2^10)/4", "", -256),
        ("50%", "%", 50),
        ("  ", "B", None),
    ],
)
def test_a_prediction_is_read_as_it_was_meant(text, unit, value):
    assert parse(text, unit) == (None if value is None else pytest.approx(value))


@pytest.mark.parametrize(
    "text", ["many", "__import__('os')", "2**2**99", "1/0", "(", "a.b", "[1]", "9" * 5000]
)
def test_what_is_no_number_is_said_to_be_none(text):
    with pytest.raises(ValueError, match="no number to me"):
        parse(text)


@pytest.mark.parametrize(
    ("guess", "value", "words"),
    [
        (None, 5, ""),
        (100, 100, "right"),
        (102, 100, "right within 2.0%"),
        (50, 100, "2 times too small"),
        (300, 100, "3 times too large"),
        (0, 100, "different"),
        ("keys", "keys", "right"),
        ("keys", "values", "different"),
    ],
)
def test_distance_is_told_in_words(guess, value, words):
    assert distance(guess, value) == words


def test_an_empty_guess_is_no_prediction_and_a_later_one_updates_the_table(shown):
    guess = predictions.predict("bytes", unit="B")
    predictions.compare(guess, formula=2000, measured=2000, why={0.5: "keys and values are both kept"})
    assert "no prediction" in shown[-1]["text/plain"]
    guess.set("1 kB")
    assert "2 times too small" in shown[-1]["text/plain"]
    assert "keys and values are both kept" in shown[-1]["text/html"]
    guess.set("2 kB")
    assert "right" in shown[-1]["text/plain"] and "both kept" not in shown[-1]["text/plain"]


def test_typing_into_the_field_sets_the_guess(shown):
    guess = predictions.predict("bytes", unit="B")
    entry, reading = shown[0].children[1].children
    entry.value = "1,024"
    assert guess.value == 1024 and "1.024 kB" in reading.value
    entry.value = "lots"
    assert guess.value is None and "no number to me" in reading.value


def test_a_choice_is_predicted_and_explained(shown):
    guess = predictions.predict("which grows?", choices=["attention", "weights"])
    shown[0].children[1].children[0].value = "weights"
    predictions.compare(guess, answer="attention", why={"weights": "weights are read once"})
    assert "weights are read once" in shown[-1]["text/plain"]


def test_a_slip_of_unit_is_named(shown):
    predictions.compare(8e6, unit="B", formula=1e6)
    assert "bits or bytes" in shown[-1]["text/plain"]
    predictions.compare(2.0, unit="B", formula=2e6)
    assert "prefix" in shown[-1]["text/plain"]


def test_compare_takes_tensors_and_refuses_nothing_to_compare(shown):
    torch = pytest.importorskip("torch")
    predictions.compare(3, measured=torch.tensor(3.0))
    assert "right" in shown[-1]["text/plain"]
    with pytest.raises(ValueError, match="at least one named value"):
        predictions.compare(Guess("", "", None, None))


def line(n: int, kind: str = "line") -> go.Figure:
    if n == 7:
        raise ValueError("seven is not to be drawn")
    trace = go.Heatmap(z=[[0, n]]) if kind == "heat" else go.Scatter(y=list(range(n)))
    shapes = [{"type": "line", "x0": 0, "x1": n}] * (n % 2)
    return palette.figure(trace, title=f"{kind} {n}", shapes=shapes)


def test_a_moved_control_changes_the_live_figure_in_place():
    panel = figures.Panel(line, {"n": (3, 9), "kind": ["line", "heat"]})
    panel.widget()
    live = panel.live
    panel.controls["n"].value = 6
    assert panel.live is live and len(live.figure["data"][0]["y"]) == 6
    assert live.figure["layout"]["title"]["text"] == "line 6" and not live.figure["layout"].get("shapes")
    panel.controls["kind"].value = "heat"
    assert live.figure["data"][0]["type"] == "heatmap"


def test_a_value_that_cannot_be_drawn_is_said_and_leaves_the_figure():
    panel = figures.Panel(line, {"n": (3, 9)})
    panel.widget()
    panel.controls["n"].value = 7
    assert "seven" in panel.message.value and panel.figure.layout.title.text == "line 3"
    panel.controls["n"].value = 8
    assert panel.message.value == "" and panel.figure.layout.title.text == "line 8"


def test_controls_come_from_short_forms():
    kinds = {n: type(figures.control("x", n)).__name__ for n in [(1, 5), (0.0, 1.0, 0.1), True]}
    assert kinds == {(1, 5): "IntSlider", (0.0, 1.0, 0.1): "FloatSlider", True: "Checkbox"}
    assert figures.control("x", {"small": 1}).value == 1
    with pytest.raises(ValueError, match="no control"):
        figures.control("x", "free text")


def test_a_shown_figure_is_plain_json_with_words_beside_it(shown):
    np = pytest.importorskip("numpy")
    figures.show(palette.figure(go.Scatter(y=np.arange(3.0)), title="A line"), caption="It rises.")
    bundle = shown[0]
    json.dumps(bundle)
    assert bundle["text/plain"] == "[figure: A line] It rises." and "image/png" not in bundle


def test_static_notebooks_hold_pictures_and_no_widgets(shown, monkeypatch):
    monkeypatch.setenv("COURSE_STATIC", "1")
    monkeypatch.setattr(figures, "_png", lambda fig: b"picture")
    predictions.predict("bytes", unit="B")
    figures.interact(line, n=(3, 9))
    assert all(isinstance(bundle, dict) for bundle in shown)
    assert any(base64.b64decode(b.get("image/png", "")) == b"picture" for b in shown)
    assert "move: n" in shown[-1]["text/plain"]


def test_a_picture_is_a_png_where_a_browser_is_at_hand():
    picture = figures._png(line(4))
    if picture is None:
        pytest.skip("not verified: kaleido or a browser is missing")
    assert picture.startswith(b"\x89PNG") and len(picture) > 2000


def test_without_a_browser_there_are_no_pictures_and_nothing_waits_for_one(monkeypatch, capsys):
    pytest.importorskip("kaleido", reason="not verified: kaleido is not installed")
    from choreographer.browsers.chromium import Chromium

    monkeypatch.setattr(Chromium, "find_browser", lambda **_: None)
    assert figures._renderer.__wrapped__() is None
    assert "no static pictures: there is no Chromium" in capsys.readouterr().out
