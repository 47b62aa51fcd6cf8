"""Cards for papers: what is written, in which fonts, on how many pages, and what is refused."""
import re
import warnings
import xml.etree.ElementTree as tree
import zlib

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tiny_recording import tiny_recording

import neuronbench as nb
from neuronbench.pictures import save_figures
from neuronbench.show.card import PAGE, WIDTH, card, cards

HOSTILE = {
    "mathematics": "costs $5_a and $6_b, \\frac{1}{$ ^_{",
    "markup": "<b>not</b> bold & <text>more</text>",
    "many words": "a description that goes on and on " * 40,
    "one word": "x" * 900,
    "emoji": "a red car \U0001f697, a flag \U0001f1eb\U0001f1f7, a family \U0001f469\u200d\U0001f467",
    "no spaces": "\u8d64\u3044\u8eca\u8f2a\u3068\u9752\u3044\u7a7a" * 12,
    "right to left": "\u0627\u0644\u0643\u0644\u0628 \u0627\u0644\u0623\u062d\u0645\u0631",
    "what is not seen": "a \x1b[31mred\x00 \u202eboat\ufffe\uffff\ud83d",
}


@pytest.fixture(scope="module")
def recording():
    return tiny_recording()


@pytest.fixture(autouse=True)
def no_font_has_every_letter():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support")
        yield


def said(text, units=range(8)):
    return pd.DataFrame({"layer": "maps", "unit": list(units), "description": pd.Series([text] * len(units), dtype=object), "score": 0.5, "method": "a method"})


def written_texts(path):
    """The lines of text in an SVG file."""
    return [element.text for element in tree.parse(path).iter("{http://www.w3.org/2000/svg}text")]


def objects(pdf):
    """A PDF file as text, its compressed parts unpacked where they are text."""
    parts = [pdf]
    for stream in re.findall(rb"stream\r?\n(.*?)endstream", pdf, re.DOTALL):
        try:
            parts.append(zlib.decompress(stream))
        except zlib.error:
            pass
    return b"\n".join(parts)


def boxes_of(figure):
    figure.canvas.draw()
    return [text.get_window_extent() for text in figure.texts if text.get_text()]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_text_in_every_format(recording, tmp_path, name):
    drawn = card(recording, recording.images, "maps", 1, said(HOSTILE[name]), k=2)
    pdf = objects(drawn.save(tmp_path / "unit.pdf").read_bytes())
    assert b"/FontFile2" in pdf and b"/CIDFontType2" in pdf and b"/Type3" not in pdf
    lines = written_texts(drawn.save(tmp_path / "unit.svg"))
    expected = "".join(nb.basics.clean_text(HOSTILE[name]).split())
    assert expected in "".join("".join(lines).split()) and "unit 1" in lines
    assert drawn.save(tmp_path / "unit.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_in_a_figure_of_many_is_clipped_or_overlaps(recording, name):
    for figure in cards(recording, recording.images, "maps", range(8), said(HOSTILE[name])).figures:
        boxes = boxes_of(figure)
        assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height for box in boxes)
        assert not any(a.x0 < b.x1 and b.x0 < a.x1 and a.y0 + 2 < b.y1 and b.y0 + 2 < a.y1 for i, a in enumerate(boxes) for b in boxes[:i])
        pictures = [axes.get_position() for axes in figure.axes]
        assert all(place.x1 <= 1 and place.y0 >= 0 for place in pictures)


def test_a_long_description_ends_in_an_ellipsis_where_there_is_no_room(recording):
    [figure] = cards(recording, recording.images, "maps", [3], said("a description that goes on " * 40)).figures
    assert [text.get_text() for text in figure.texts if text.get_text().endswith("…")] and figure.get_figheight() < 2


def test_every_unit_is_on_one_page_with_its_descriptions_and_exemplars(recording, tmp_path):
    units = [7, 3, *range(8, 40)]
    many = cards(recording, recording.images, "maps", units, said("red car", range(40)), k=3)
    pages = [[text.get_text() for text in figure.texts] for figure in many.figures]
    assert len(pages) > 1 and [text for page in pages for text in page if text.startswith("unit ")] == [f"unit {unit}" for unit in units]
    assert all(page.count("red car") == sum(text.startswith("unit ") for text in page) == len(figure.axes) / 3 for page, figure in zip(pages, many.figures))
    assert all(f"page {number + 1} of {len(pages)}" in page for number, page in enumerate(pages))
    pdf = many.save(tmp_path / "units.pdf").read_bytes()
    sizes = {tuple(float(number) for number in box.split()[2:]) for box in re.findall(rb"/MediaBox \[([^]]*)\]", pdf)}
    assert pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") == len(pages) and len(sizes) == 1 and sizes.pop() == pytest.approx((72 * WIDTH, 72 * PAGE))
    assert repr(many).startswith("Cards(layer='maps', units=[7, 3, 8") and f"page 1 of {len(pages)}" in many._repr_html_()


def test_a_unit_without_description_or_without_exemplars_has_a_row(recording):
    [figure] = cards(recording, recording.images, "maps", [0, 2]).figures
    assert [text.get_text() for text in figure.texts].count("no description") == 2 and len(figure.axes) < 10  # unit 2 has no exemplars


def test_sizes_follow_the_dots_per_inch(recording, tmp_path):
    drawn = card(recording, recording.images, "vector", 1)
    width, height = drawn.figure.get_size_inches()
    for dpi in (72, 300):
        size = Image.open(drawn.save(tmp_path / "unit.PNG", dpi=dpi)).size
        assert abs(size[0] - width * dpi) <= 1 and abs(size[1] - height * dpi) <= 1
    assert drawn._repr_png_().startswith(b"\x89PNG") and repr(drawn) == "Card(layer='vector', unit=1)"


@pytest.mark.parametrize("form", [".pdf", ".svg", ".png"])
def test_the_same_card_is_the_same_file(recording, tmp_path, form):
    first, second = (card(recording, recording.images, "maps", 4, said("red car")).save(tmp_path / f"{name}{form}").read_bytes() for name in "ab")
    assert first == second


@pytest.mark.parametrize("name", ["unit.jpg", "unit", "unit.pdf.exe", ".svg"])
def test_other_endings_are_refused(recording, tmp_path, name):
    drawn = card(recording, recording.images, "maps", 0)
    with pytest.raises(ValueError, match=r"saved as \.pdf, \.svg or \.png"):
        drawn.save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_refused_with_a_sentence(recording, tmp_path):
    many, drawn = cards(recording, recording.images, "maps", range(40)), card(recording, recording.images, "maps", 0)
    with pytest.raises(ValueError, match=r"pages do not fit in one \.svg file"):
        many.save(tmp_path / "units.svg")
    with pytest.raises(ValueError, match="pixels per inch"):
        drawn.save(tmp_path / "unit.png", dpi=0)
    with pytest.raises(FileNotFoundError, match="make it first"):
        drawn.save(tmp_path / "missing" / "unit.pdf")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", [".pdf", ".svg", ".png"])
def test_an_older_file_outlives_a_save_that_fails(recording, tmp_path, monkeypatch, form):
    from matplotlib.figure import Figure

    path = card(recording, recording.images, "maps", 0).save(tmp_path / f"unit{form}")
    before, other = path.read_bytes(), card(recording, recording.images, "maps", 1)
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        save_figures(path, [other.figure])
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("units, error, sentence", [([], ValueError, "units is empty"), ([0, 99], ValueError, "there is no unit 99"), ([1.5], TypeError, "whole numbers"), ([-1], ValueError, "no unit -1")])
def test_units_that_are_not_there_are_refused(recording, units, error, sentence):
    with pytest.raises(error, match=sentence):
        cards(recording, recording.images, "maps", units)


def test_other_images_than_those_recorded_are_refused(recording):
    with pytest.raises(ValueError):
        cards(recording, nb.ProbingSet.from_images([Image.new("RGB", (9, 9))] * 2), "maps", [0])
    with pytest.raises(KeyError, match="maps"):
        cards(recording, recording.images, "map", [0])


def test_a_bench_has_cards_with_all_that_was_said():
    draw = np.random.default_rng(0)
    images = nb.ProbingSet.from_images([Image.fromarray(draw.integers(0, 255, (16, 16, 3), np.uint8)) for _ in range(12)])
    torch = pytest.importorskip("torch")
    target = nb.Target(torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3)), ["0"], lambda image: torch.from_numpy(np.array(image, np.float32) / 255).permute(2, 0, 1), device="cpu")
    bench = nb.Workbench(target, images)
    bench.descriptions = said("red car", range(6)).assign(layer="0")
    many = bench.cards("0", [4, 1], k=2)
    assert many.units == [4, 1] and [text.get_text() for text in many.figures[0].texts].count("red car") == 2 and len(many.figures[0].axes) == 4
