"""The Python side of the card and the browser: what is shown, in which order, and what is refused."""

import base64
import io
import json
import threading

import numpy as np
import pandas as pd
import pytest
import traitlets
from PIL import Image
from tiny_recording import HOSTILE, Drawings, tiny_descriptions, tiny_recording

from neuronbench.basics import readable_number
from neuronbench.describe.comparison import best_descriptions
from neuronbench.probe.images import BadImage, ProbingSet
from neuronbench.widgets.browser import browse
from neuronbench.widgets.unit_list import description_table, listed_units, said_by_all
from neuronbench.show.card import card
from neuronbench.show.evidence import evidence, fitted, map_bytes, overlaid

pytestmark = pytest.mark.filterwarnings("ignore:.*finite on fewer than:UserWarning")


@pytest.fixture(scope="module")
def recording():
    return tiny_recording()


@pytest.fixture
def browser(recording):
    view = browse(recording, recording.images, "maps", tiny_descriptions())
    view.sent = []
    view.send = lambda content, buffers=None: view.sent.append((content, buffers))
    return view


@pytest.fixture(scope="module")
def both():
    """Recorded by two poolings."""
    return tiny_recording(("mean", "max"))


def ask(browser, layer="maps", unit=0, k=10, pool="mean"):
    """What the browser sends when the view asks for a unit."""
    browser._answer(browser, {"kind": "ask", "layer": layer, "unit": unit, "k": k, "pool": pool}, [])
    return browser.sent[-1]


def texts(figure):
    return [text.get_text() for text in figure.texts]


# the evidence


def test_evidence_has_the_largest_activations_in_order(recording):
    shown = evidence(recording, "maps", 5, k=7)
    column = recording["maps"].values[:, 5]
    assert shown.images.tolist() == np.argsort(-column, kind="stable")[:7].tolist()
    np.testing.assert_array_equal(shown.activations, np.sort(column)[::-1][:7])
    assert shown.counts.sum() == 60 and shown.nonfinite == 0 and shown.maps.shape == (7, 16, 16)


def test_evidence_maps_are_the_activations_of_the_unit(recording):
    shown = evidence(recording, "maps", 5, k=3)
    low, high = shown.map_range
    means = (low + shown.maps.astype(float) / 255 * (high - low)).mean((1, 2))
    np.testing.assert_allclose(means, shown.activations, atol=(high - low) / 255)


def test_nonfinite_activations_are_counted_and_never_ranked(recording):
    column = recording["maps"].values[:, 1]
    some = evidence(recording, "maps", 1, k=60)
    assert some.nonfinite == np.isnan(column).sum() > 0
    assert not np.isnan(column[some.images]).any() and len(some.images) == 60 - some.nonfinite
    none = evidence(recording, "maps", 2)
    assert none.nonfinite == 60 and len(none.images) == 0 and none.counts.sum() == 0


def test_a_layer_without_maps_has_evidence_without_maps(recording):
    assert evidence(recording, "vector", 3).maps is None


def test_evidence_is_of_the_pooling_asked_for(both, recording):
    for pool, expected in ((None, "mean"), ("mean", "mean"), ("max", "max")):
        shown, column = evidence(both, "maps", 5, k=7, pool=pool), both.pooled("maps", expected).values[:, 5]
        assert shown.pool == expected and shown.images.tolist() == np.argsort(-column, kind="stable")[:7].tolist()
        np.testing.assert_array_equal(shown.activations, np.sort(column)[::-1][:7])
        np.testing.assert_array_equal(shown.counts, np.histogram(column.astype(float), bins=48)[0])
    assert shown.map_range[1] == pytest.approx(shown.activations[0])  # the maximum of the map is the activation
    assert evidence(both, "vector", 5, pool="max").pool is None and evidence(recording, "maps", 5).pool == "mean"
    with pytest.raises(KeyError, match="no recorded pooling 'max'"):
        evidence(recording, "maps", 5, pool="max")
    with pytest.raises(KeyError, match="did you mean 'maps'"):
        evidence(recording, "mapz", 5, pool="mean")


def test_map_bytes_share_one_scale_and_survive_nan():
    maps = np.array([[[0.0, 1.0], [np.nan, np.inf]], [[4.0, 2.0], [-np.inf, 0.0]]])
    scaled, limits = map_bytes(maps)
    assert limits == (0.0, 4.0) and scaled.tolist() == [[[0, 64], [0, 255]], [[255, 128], [0, 0]]]
    assert map_bytes(np.full((2, 3, 3), np.nan)) == (None, (0.0, 0.0))
    assert not map_bytes(np.full((2, 3, 3), 7.0))[0].any()


def test_overlaid_changes_only_what_reaches_the_threshold():
    grey = Image.new("RGB", (40, 40), (90, 90, 90))
    half = np.repeat([[0, 255]], 2, axis=0).astype(np.uint8)
    changed = (np.asarray(overlaid(grey, half, threshold=0.5)) != 90).any(-1)
    assert changed[:, 21:].all() and not changed[:, :19].any()
    assert np.array_equal(np.asarray(overlaid(grey, half, opacity=0)), np.asarray(grey))


def test_wrong_names_and_numbers_are_refused_with_the_nearest(recording):
    with pytest.raises(KeyError, match="did you mean 'maps'"):
        card(recording, recording.images, "map", 0)
    with pytest.raises(IndexError, match="0 to 39; 40 was asked for"):
        card(recording, recording.images, "maps", 40)
    with pytest.raises(ValueError, match="these 2 images are not the 60 images"):
        card(recording, ProbingSet.from_images([Image.new("RGB", (9, 9))] * 2), "maps", 0)


def test_numbers_are_readable():
    assert [readable_number(x) for x in (0, 0.1234, -12.345, 123.45, 1e-5, 2e6, np.nan)] == ["0.000", "0.123", "-12.35", "123.5", "1.0e-5", "2.0e+6", "–"]


# descriptions


def test_best_descriptions_keep_one_row_per_unit_and_method():
    rows = [("a", 0, "low", 0.1, "m"), ("a", 0, "none", np.nan, "m"), ("a", 0, "high", 0.9, "m"),
            ("a", 0, "other", 0.2, "n"), ("a", 1, None, 0.5, "m")]
    best = best_descriptions(pd.DataFrame(rows, columns=["layer", "unit", "description", "score", "method"]))
    assert best["description"].tolist() == ["high", "other"]


def test_listed_units_search_all_methods_and_sort_by_one():
    frame = pd.DataFrame([("a", 0, "Red wheel", 0.1, "m"), ("a", 2, "snow", 0.9, "m"), ("a", 3, "night", np.nan, "m"), ("a", 0, "boat", 5, "n")],
                         columns=["layer", "unit", "description", "score", "method"])
    table = description_table(frame, "a", 12)
    texts = said_by_all(table, 12)
    assert listed_units(table, texts, "wheel BOAT") == [0]
    assert listed_units(table, texts, "1") == [1] and listed_units(table, texts, "zebra") == []
    assert listed_units(table, texts, sort="highest score", method="m")[:3] == [2, 0, 1]
    assert listed_units(table, texts, sort="lowest score", method="m")[:2] == [0, 2]
    json.dumps(table, allow_nan=False)


@pytest.mark.parametrize("frame, error, words", [
    (pd.DataFrame({"layer": ["maps"], "unit": [0]}), ValueError, "missing: description, score, method"),
    (pd.DataFrame([("maps", 40, "x", 0.1, "m")], columns=["layer", "unit", "description", "score", "method"]), IndexError, "0 to 39; 40"),
])
def test_descriptions_that_do_not_fit_are_refused(recording, frame, error, words):
    with pytest.raises(error, match=words):
        browse(recording, recording.images, "maps", frame)


# the card


def test_card_shows_everything_as_plain_text(recording):
    figure = card(recording, recording.images, "maps", 0, tiny_descriptions()).figure
    shown = evidence(recording, "maps", 0)
    written = texts(figure)
    assert {"maps", "unit 0", "CLIP-Dissect", "INVERT"} <= set(written)
    assert [readable_number(a) for a in shown.activations] == [t for t in written if t in {readable_number(a) for a in shown.activations}]
    assert all(not text.get_parse_math() for text in figure.texts)
    assert "$x_1$" in " ".join(written) and "<img" in " ".join(written)
    assert len(figure.axes) == 11


@pytest.mark.parametrize("layer, unit, k", [("maps", 0, 10), ("maps", 1, 3), ("maps", 2, 10), ("vector", 1, 7)])
def test_nothing_on_the_card_is_clipped_or_overlaps(recording, layer, unit, k):
    long = pd.DataFrame([(layer, unit, "a very long description of many words " * 6, 0.1, "a method with a long name " * 3)],
                        columns=["layer", "unit", "description", "score", "method"])
    figure = card(recording, recording.images, layer, unit, long, k=k).figure
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.texts if text.get_text()]
    width, height = figure.bbox.width, figure.bbox.height
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height for box in boxes)
    assert not any(a.x0 < b.x1 and b.x0 < a.x1 and a.y0 < b.y1 and b.y0 < a.y1 for i, a in enumerate(boxes) for b in boxes[:i])


def test_a_card_says_by_which_pooling_it_ranks(both):
    written = {pool: texts(card(both, both.images, "maps", 5, pool=pool).figure) for pool in (None, "max")}
    assert "activations on all 60 images, pooled by mean" in written[None] and "activations on all 60 images, pooled by max" in written["max"]
    assert {readable_number(a) for a in evidence(both, "maps", 5, pool="max").activations} <= set(written["max"])
    assert "activations on all 60 images" in texts(card(both, both.images, "vector", 5).figure)


def test_pictures_have_one_size():
    assert [fitted(Image.new("RGB", size)).size for size in [(32, 32), (1000, 500), (3, 900)]] == [(224, 224), (224, 112), (1, 224)]


# the browser's state


def test_the_browser_starts_on_the_deepest_layer(recording):
    view = browse(recording, recording.images)
    assert (view.layer, view.unit, view.unit_count, view.table) == ("vector", 0, 2048, {})


def test_choosing_a_layer_lists_its_units(browser):
    browser.layer = "vector"
    assert (browser.unit, browser.unit_count, browser.order, browser.table) == (0, 2048, list(range(2048)), {})
    browser.unit = 2047
    browser.layer = "maps"
    assert (browser.unit, browser.unit_count, browser.order) == (39, 40, list(range(40))) and browser.table


def test_wrong_choices_are_refused(browser):
    with pytest.raises(KeyError, match="did you mean 'maps'"):
        browser.layer = "mapz"
    with pytest.raises(IndexError, match="0 to 39; 40 was asked for"):
        browser.unit = 40
    with pytest.raises(traitlets.TraitError):
        browser.sort = "best"
    assert (browser.layer, browser.unit) == ("maps", 0)


def test_layer_and_unit_can_come_together_from_the_view(browser):
    browser.set_state({"layer": "vector", "unit": 4})
    assert (browser.layer, browser.unit, browser.unit_count) == ("vector", 4, 2048)


def test_a_pooling_holds_for_the_layers_that_were_recorded_by_it(both, recording):
    view = browse(both, both.images, "maps", pool="max")
    assert (view.pool, view.pools, view.pool_on_view) == ("max", {"maps": ["mean", "max"], "vector": []}, "max")
    view.layer = "vector"
    assert (view.pool, view.pool_on_view) == ("max", None)
    view.layer, view.pool = "maps", "class"  # of another layer, perhaps; this one has no class token
    assert view.pool_on_view == "mean"
    assert browse(both, both.images, "maps").pool_on_view == "mean" and browse(both, both.images, "vector", pool="max").pool_on_view is None
    with pytest.raises(KeyError, match="did you mean 'max'"):
        view.pool = "maxi"
    with pytest.raises(KeyError, match="no recorded pooling 'max'"):
        browse(recording, recording.images, "maps", pool="max")


def test_searching_and_sorting_change_the_list(browser):
    browser.query = HOSTILE.split()[0]
    assert browser.order == [0]
    browser.query, browser.sort, browser.method = "", "highest score", "INVERT"
    scores = browser.table["INVERT"][1]
    assert browser.order[0] == max(range(39), key=lambda unit: scores[unit]) and browser.order[-1] == 39


def test_added_descriptions_show_at_once_and_replace_their_own(browser):
    new = pd.DataFrame({"layer": "maps", "unit": [3, 3], "description": ["old", "sun"], "score": [1.0, 2.0], "method": "MILAN"})
    browser.add_descriptions(new)
    assert list(browser.table) == ["CLIP-Dissect", "INVERT", "MILAN"] and browser.table["MILAN"][0][3] == "sun"
    browser.add_descriptions(new.assign(description="moon"))
    assert browser.table["MILAN"][0][3] == "moon" and (browser.descriptions["method"] == "MILAN").sum() == 2


def test_pins_are_a_frame_and_a_csv_file(browser):
    assert browser.pins.empty and browser.pins_csv.splitlines() == ["layer,unit,description,similarity,method"]
    browser.pinned = [["maps", 0], ["vector", 2], ["maps", 39]]
    assert browser.pins[["layer", "unit", "method"]].values.tolist()[:2] == [["maps", 0, "CLIP-Dissect"], ["maps", 0, "INVERT"]]
    assert browser.pins["description"].isna().tolist() == [False, False, True, True]
    pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(browser.pins_csv)).rename(columns={"similarity": "score"}), browser.pins, check_dtype=False)


def test_every_trait_of_the_view_explains_itself(browser):
    own = {name for name in type(browser).class_trait_names(sync=True) if not name.startswith("_")} - {"layout", "tabbable", "tooltip"}
    assert len(own) == 19 and all(type(browser).class_traits()[name].help for name in own)


def test_a_click_and_a_cell_take_turns(browser):
    """The list is of the layer on view, whichever of the two came last."""
    heard, go_on = threading.Event(), threading.Event()

    def hear(change):
        if change["new"] == "vector":
            heard.set()
            go_on.wait(60)

    browser.layer = "maps"
    browser.unobserve(browser.relist, ["layer", "query", "sort", "method"])
    browser.observe(hear, "layer")
    browser.observe(browser.relist, ["layer", "query", "sort", "method"])
    page = threading.Thread(target=browser._handle_msg, args=({"content": {"data": {"method": "update", "state": {"layer": "vector", "unit": 4}}}},))
    page.start()
    assert heard.wait(60)
    cell = threading.Thread(target=setattr, args=(browser, "layer", "maps"))
    cell.start()
    cell.join(0.5)
    go_on.set()
    page.join(60)
    cell.join(60)
    assert browser.layer == "maps" and browser.unit_count == len(browser.order) == 40


# the messages


def test_the_message_about_a_unit_holds_what_the_page_shows(browser, recording):
    content, buffers = ask(browser, unit=5, k=4)
    shown = evidence(recording, "maps", 5, k=4)
    assert content["images"] == shown.images.tolist() and content["activations"] == pytest.approx(shown.activations.tolist())
    assert content["ids"] == [Drawings.ids[i] for i in shown.images] and content["labels"] == [Drawings.classes[i % 3] for i in shown.images]
    assert buffers[0] == shown.maps.tobytes() and content["map_shape"] == (16, 16)
    assert [Image.open(io.BytesIO(part)).size for part in buffers[1:]] == [(224, 224)] * 4
    json.dumps(content, allow_nan=False)


def test_the_view_gets_the_evidence_of_the_pooling_that_it_asks_for(both):
    view = browse(both, both.images, "maps")
    view.sent = []
    view.send = lambda content, buffers=None: view.sent.append((content, buffers))
    for pool in ("mean", "max"):
        content, _ = ask(view, unit=5, pool=pool)
        assert content["pool"] == pool and content["activations"] == evidence(both, "maps", 5, pool=pool).activations.tolist()
    assert ask(view, "vector", 5, pool=None)[0]["pool"] is None


@pytest.mark.parametrize("layer, unit", [("maps", 1), ("maps", 2), ("vector", 0)])
def test_messages_about_odd_units_are_valid_too(browser, layer, unit):
    content, buffers = ask(browser, layer, unit)
    json.dumps(content, allow_nan=False)
    assert len(buffers) == len(content["images"]) + (content["map_shape"] is not None)
    assert content["nonfinite"] == {1: 8, 2: 60}.get(unit, 0)


def test_an_image_that_can_no_longer_be_read_is_reported_not_hidden(browser, monkeypatch):
    monkeypatch.setattr(type(browser.images), "__getitem__", lambda self, i: (_ for _ in ()).throw(BadImage("gone.png", "no such file")))
    with pytest.raises(BadImage):
        ask(browser, unit=7)
    content, _ = browser.sent[-1]
    assert content["kind"] == "failed" and "gone.png" in content["sentence"]


# without a kernel


def test_the_stored_output_has_a_picture_besides_the_view(browser):
    browser.unit = 3
    bundle, _ = browser._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    picture = Image.open(io.BytesIO(base64.b64decode(bundle["image/png"])))
    assert picture.format == "PNG" and picture.width > 600 and len(bundle["image/png"]) < 200_000
    assert bundle["text/plain"] == "Browser(layer='maps', unit=3)"


@pytest.mark.parametrize("with_state", [False, True])
def test_a_stored_notebook_shows_the_picture_in_html(browser, monkeypatch, with_state):
    import nbformat
    from nbconvert import HTMLExporter

    cells = []
    for unit in (3, 4):
        browser.unit = unit
        cells.append(nbformat.v4.new_code_cell("browser", outputs=[]))
        monkeypatch.setattr("IPython.display.display", lambda data, **_: cells[-1].outputs.append(nbformat.v4.new_output("display_data", data=data)))
        browser._ipython_display_()
    notebook = nbformat.v4.new_notebook(cells=cells)
    if with_state:
        state = {browser.model_id: {"model_name": "AnyModel", "model_module": "anywidget", "state": {}}}
        notebook.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": state, "version_major": 2, "version_minor": 0}}
    html, _ = HTMLExporter().from_notebook_node(notebook)
    assert html.count('src="data:image/png') == 2 and html.count(f'data-nb-still="{browser.still_id}"') == 2
    assert html.count(f'"model_id": "{browser.model_id}"') == 2 * with_state
    assert html.count("alt=\"Browser(layer='maps', unit=4)\"") == 1
