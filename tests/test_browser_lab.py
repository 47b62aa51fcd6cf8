"""The browser in JupyterLab and Chromium: what a person sees when choosing, searching, sorting, pinning and exporting.

Screenshots are kept in artifacts/. Without Chromium these tests fail with a sentence that says what to install.
"""

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from browser_lab import Chromium, JupyterLab, find_chromium, kernel_says, run_all, write_notebook
from tiny_recording import HOSTILE, Drawings, tiny_descriptions, tiny_recording

import neuronbench as nb
from neuronbench.basics import readable_number
from neuronbench.show.evidence import evidence

HERE = Path(__file__).parent
ARTIFACTS = HERE.parent / "artifacts"
LESSON = HERE.parent / "nbs" / "lessons" / "01_first_neuron.ipynb"
WIDTH, HEIGHT = 1400, 1200
BROWSER = ".nb-browser"
AS_AT_FIRST = """
browser.layer, browser.unit, browser.k, browser.pinned = 'maps', 0, 10, []
browser.query, browser.sort, browser.method, browser.pool = '', 'unit', 'CLIP-Dissect', 'mean'
browser.show_map, browser.opacity, browser.threshold = True, 0.5, 0.5
"""
CODE = f"""import sys
sys.path.insert(0, {str(HERE)!r})
from tiny_recording import tiny_recording, tiny_descriptions
import neuronbench as nb
recording = tiny_recording(("mean", "max"))
browser = nb.browse(recording, recording.images, "maps", tiny_descriptions())
browser"""


@pytest.fixture(scope="module")
def recording():
    return tiny_recording(("mean", "max"))


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab on a folder with a small notebook."""
    folder = tmp_path_factory.mktemp("lab")
    write_notebook(folder / "tiny.ipynb", CODE)
    ARTIFACTS.mkdir(exist_ok=True)
    with JupyterLab(folder) as server:
        yield server


@pytest.fixture(scope="module")
def chromium():
    with Chromium(WIDTH, HEIGHT) as chromium:
        yield chromium


@pytest.fixture(scope="module")
def opened(lab, chromium):
    """The page with the small notebook run."""
    page = chromium.open(lab, "tiny.ipynb")
    run_all(page)
    wait_for_unit(page, 0)
    return page


@pytest.fixture
def page(opened):
    """The browser on unit 0 of "maps", nothing searched, pinned or sorted, its keys active."""
    kernel_says(opened, AS_AT_FIRST)
    wait_for_unit(opened, 0)
    opened.locator(BROWSER).focus()
    return opened


def wait_for_unit(page, unit, layer="maps"):
    shown = f'{BROWSER}[data-unit="{unit}"][data-layer="{layer}"]:not([data-waiting])'
    page.wait_for_selector(shown, timeout=30_000)


def exemplars_on(page):
    """What the page shows below each exemplar: (image, activation, label, id)."""
    return page.locator(".nb-exemplar").evaluate_all(
        """all => all.map(one => [Number(one.dataset.image),
             ...['activation', 'label', 'id'].map(part => one.querySelector(`.nb-${part}`).textContent)])""")


def expected_exemplars(recording, layer, unit, k=10, pool=None):
    shown = evidence(recording, layer, unit, k, pool=pool)
    return [[int(i), readable_number(a), Drawings.classes[i % 3], Drawings.ids[i]] for i, a in zip(shown.images, shown.activations)]


def overlay_pixels(page):
    """How many pixels of the first exemplar's map are drawn, and how opaque the least of them is."""
    return page.locator(".nb-overlay").first.evaluate(
        """canvas => { const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
                       const alphas = data.filter((_, i) => i % 4 === 3 && data[i] > 0);
                       return [alphas.length, alphas.length ? alphas.reduce((a, b) => Math.min(a, b)) : 0]; }""")


def wait_for_python(page, expression, seconds=20):
    """The view sends a choice when the kernel has answered the one before, so Python knows it a little later."""
    deadline = time.monotonic() + seconds
    while kernel_says(page, f"print({expression})").strip() != "True":
        assert time.monotonic() < deadline, f"{expression} did not become true in the kernel"
        time.sleep(0.1)


def listed(page):
    return [int(text) for text in page.locator(".nb-unit-number").all_text_contents()]


def drag(slider, share):
    """Set a slider by clicking at a share of its length, as a person does."""
    box = slider.bounding_box()
    slider.click(position={"x": 8 + share * (box["width"] - 16), "y": box["height"] / 2})


def test_a_missing_chromium_is_a_sentence_that_says_what_to_install(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(FileNotFoundError, match="sudo apt-get install chromium"):
        find_chromium()


# choosing a unit


def test_the_page_shows_the_exemplars_that_python_computes(page, recording):
    assert exemplars_on(page) == expected_exemplars(recording, "maps", 0)
    page.screenshot(path=ARTIFACTS / "browser.png")


@pytest.mark.parametrize("keys, unit", [
    (["ArrowRight"], 1), (["ArrowDown", "ArrowDown", "ArrowUp"], 1), (["j", "j", "k"], 1), (["ArrowLeft"], 0),
    (["PageDown"], 10), (["PageDown", "PageDown", "PageUp"], 10), (["End"], 39), (["End", "ArrowRight", "Home"], 0),
])
def test_keys_move_between_units(page, recording, keys, unit):
    for key in keys:
        page.keyboard.press(key)
    wait_for_unit(page, unit)
    assert exemplars_on(page) == expected_exemplars(recording, "maps", unit)
    assert page.locator(".nb-title").text_content() == f"maps unit {unit}"
    assert page.locator('.nb-unit[aria-selected="true"] .nb-unit-number').text_content() == str(unit)
    wait_for_python(page, f"browser.unit == {unit}")


def test_keys_never_reach_the_notebook(page):
    cells, prompts = page.locator(".jp-Cell").count(), page.locator(".jp-InputPrompt").all_text_contents()
    for key in ["a", "b", "d", "d", "x", "c", "v", "z", "m", "y", "Enter", "j", "k", "Escape", "0", "0"]:
        page.keyboard.press(key)
    assert page.locator(".jp-Cell").count() == cells and page.locator(".jp-CodeCell").count() == cells
    assert page.locator(BROWSER).evaluate("root => root === document.activeElement")
    assert page.locator(".jp-InputPrompt").all_text_contents() == prompts


def test_a_click_in_the_browser_makes_its_keys_work(page):
    page.locator(".jp-Cell .cm-content").first.click()
    assert not page.locator(BROWSER).evaluate("root => root.contains(document.activeElement)")
    page.locator(".nb-exemplar").nth(3).click()
    assert page.locator(BROWSER).evaluate("root => root === document.activeElement")
    assert page.locator(BROWSER).evaluate("root => getComputedStyle(root).outlineWidth") == "2px"
    page.keyboard.press("ArrowRight")
    wait_for_unit(page, 1)


def test_the_slider_the_number_and_the_list_choose_too(page, recording):
    drag(page.get_by_label("Unit", exact=True), 0.5)
    unit = int(page.get_by_label("Unit number", exact=True).input_value())
    assert 17 <= unit <= 22
    wait_for_unit(page, unit)
    assert exemplars_on(page) == expected_exemplars(recording, "maps", unit)
    page.get_by_label("Unit number", exact=True).fill("33")
    page.keyboard.press("Enter")
    wait_for_unit(page, 33)
    page.locator(".nb-unit", has=page.get_by_text("35", exact=True)).first.click()
    wait_for_unit(page, 35)
    page.get_by_label("Next unit").click()
    wait_for_unit(page, 36)


def test_another_layer_has_its_own_units_and_no_maps(page, recording):
    page.get_by_label("Layer", exact=True).select_option("vector")
    wait_for_unit(page, 0, "vector")
    assert exemplars_on(page) == expected_exemplars(recording, "vector", 0)
    assert page.get_by_text("This layer has no activation map.").is_visible() and not page.get_by_text("Opacity").is_visible()
    page.screenshot(path=ARTIFACTS / "browser_vector.png")


def test_thousands_of_units_cost_no_more_than_those_in_view(page):
    kernel_says(page, "browser.layer = 'vector'")
    wait_for_unit(page, 0, "vector")
    page.keyboard.press("End")
    wait_for_unit(page, 2047, "vector")
    assert page.locator('.nb-unit[aria-selected="true"] .nb-unit-number').text_content() == "2047"
    assert page.locator(".nb-unit").count() < 60
    assert page.get_by_text("of 2048", exact=True).is_visible()


def test_python_chooses_too(page):
    kernel_says(page, "browser.unit = 12; browser.k = 3")
    wait_for_unit(page, 12)
    page.wait_for_function("() => document.querySelectorAll('.nb-exemplar').length === 3")


# the evidence


def test_the_number_of_exemplars_can_be_chosen(page, recording):
    page.get_by_label("Number of exemplars").fill("17")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelectorAll('.nb-exemplar').length === 17")
    assert exemplars_on(page) == expected_exemplars(recording, "maps", 0, 17)


def test_the_still_picture_is_hidden_while_a_kernel_answers(page):
    still = page.locator("[data-nb-still] img")
    assert still.count() == 1 and still.get_attribute("alt") == "Browser(layer='maps', unit=0)" and still.is_hidden()


def test_the_pooling_that_ranks_can_be_chosen(page, recording):
    title = page.locator(".nb-main .nb-small")
    assert "images, pooled by mean (" in title.text_content()
    page.get_by_label("Pooling that ranks").select_option("max")
    page.wait_for_function("() => document.querySelector('.nb-main .nb-small').textContent.includes('pooled by max (')")
    assert exemplars_on(page) == expected_exemplars(recording, "maps", 0, pool="max") != expected_exemplars(recording, "maps", 0)
    page.screenshot(path=ARTIFACTS / "browser_pool.png")
    page.get_by_label("Layer", exact=True).select_option("vector")
    wait_for_unit(page, 0, "vector")
    assert page.get_by_label("Pooling that ranks").is_hidden() and "pooled" not in title.text_content()
    page.get_by_label("Layer", exact=True).select_option("maps")
    wait_for_unit(page, 0)
    assert exemplars_on(page) == expected_exemplars(recording, "maps", 0, pool="max")
    kernel_says(page, "browser.pool = 'mean'")
    page.wait_for_function("() => document.querySelector('.nb-main .nb-small').textContent.includes('pooled by mean (')")


def test_threshold_and_opacity_change_the_overlay(page, recording):
    shown = evidence(recording, "maps", 0)
    large = np.asarray(Image.fromarray(shown.maps[0]).resize((224, 224), Image.Resampling.BILINEAR))
    count, alpha = overlay_pixels(page)
    assert abs(count - (large >= 127.5).sum()) <= 0.02 * large.size and 120 <= alpha <= 135
    drag(page.get_by_label("Threshold of the map"), 0.65)
    page.wait_for_timeout(100)
    fewer, _ = overlay_pixels(page)
    assert 0 < fewer < count
    drag(page.get_by_label("Opacity of the map"), 0.2)
    page.wait_for_timeout(100)
    assert overlay_pixels(page)[1] < 80
    page.locator(BROWSER).focus()
    page.keyboard.press("m")
    page.wait_for_function("() => document.querySelector('.nb-overlay').hidden")
    wait_for_python(page, "browser.threshold > 0.55 and browser.opacity < 0.3 and not browser.show_map")


def test_the_histogram_marks_the_exemplars(page, recording):
    shown = evidence(recording, "maps", 0)
    marks = page.locator(".nb-mark").evaluate_all("all => all.map(mark => mark.getBBox().x)")
    assert len(marks) == 10 and marks == sorted(marks, reverse=True)
    heights = page.locator(".nb-column").evaluate_all("all => all.map(bar => bar.height.baseVal.value)")
    assert [height > 0 for height in heights] == [bool(count) for count in shown.counts]
    page.locator(".nb-exemplar").nth(2).hover()
    assert page.locator(".nb-mark.nb-lit").count() == 1


@pytest.mark.parametrize("unit, sentence, count", [
    (1, "8 images have a NaN or infinite activation; they are not ranked.", 10), (2, "60 images have a NaN", 0),
])
def test_nonfinite_activations_are_reported(page, unit, sentence, count):
    kernel_says(page, f"browser.unit = {unit}")
    wait_for_unit(page, unit)
    assert sentence in page.locator(".nb-message").text_content() and page.locator(".nb-exemplar").count() == count


def test_a_failure_is_told_as_plain_text_and_does_not_last(page, chromium, recording):
    kernel_says(page, "works = browser._evidence\n"
                      "def fails(*asked): raise OSError('the disk is <b>gone</b>')\n"
                      "browser._evidence = fails\n"
                      "browser.unit = 25")
    page.get_by_text("OSError: the disk is <b>gone</b>").wait_for()
    kernel_says(page, "browser._evidence = works")
    page.keyboard.press("ArrowRight")
    wait_for_unit(page, 26)
    page.keyboard.press("ArrowLeft")
    wait_for_unit(page, 25)
    assert exemplars_on(page) == expected_exemplars(recording, "maps", 25) and page.locator(".nb-message").text_content() == ""


# descriptions


def test_searching_limits_the_list_and_keys_move_within_it(page):
    words = tiny_descriptions()
    matching = sorted(set(words[words["description"].str.contains("snow")]["unit"]))
    page.keyboard.press("/")
    page.keyboard.type("snow")
    page.wait_for_function("count => document.querySelector('.nb-hits').textContent === `${count} of 40 units`", arg=len(matching))
    assert listed(page) == matching
    page.keyboard.press("Enter")
    wait_for_unit(page, matching[0])
    page.keyboard.press("ArrowRight")
    wait_for_unit(page, matching[1])
    page.screenshot(path=ARTIFACTS / "browser_search.png")
    page.keyboard.press("/")
    page.keyboard.press("Escape")
    page.wait_for_function("() => document.querySelector('.nb-hits').textContent === ''")


def test_sorting_by_score_reorders_the_list(page):
    page.get_by_label("Order of the list").select_option("highest score")
    words = tiny_descriptions().query("method == 'CLIP-Dissect'").sort_values("score", ascending=False)
    page.locator(".nb-list").evaluate("list => { list.scrollTop = 0; }")
    page.wait_for_function("unit => document.querySelector('.nb-unit-number').textContent === String(unit)", arg=int(words["unit"].iloc[0]))
    assert listed(page)[:5] == words["unit"].tolist()[:5]
    page.locator(BROWSER).focus()
    page.keyboard.press("Home")
    wait_for_unit(page, words["unit"].iloc[0])
    page.keyboard.press("ArrowDown")
    wait_for_unit(page, words["unit"].iloc[1])


def test_descriptions_of_every_method_show_and_new_ones_arrive(page):
    words = tiny_descriptions().query("unit == 4").set_index("method")
    kernel_says(page, "browser.unit = 4")
    wait_for_unit(page, 4)
    assert page.locator(".nb-method").all_text_contents() == ["CLIP-Dissect", "INVERT"]
    assert page.locator(".nb-said").all_text_contents() == words["description"].tolist()
    assert page.locator(".nb-score").all_text_contents() == [readable_number(score) for score in words["score"]]
    row = {"layer": ["maps"], "unit": [4], "description": ["a late one"], "score": [3.0], "method": ["MILAN"]}
    kernel_says(page, f"import pandas as pd\nbrowser.add_descriptions(pd.DataFrame({row!r}))")
    page.get_by_text("a late one").first.wait_for()


def test_names_that_try_to_break_in_are_shown_as_they_are(page):
    assert HOSTILE in page.locator(".nb-said").all_text_contents()
    assert f"$x_1$ {HOSTILE}" in page.locator(".nb-said").all_text_contents()
    assert HOSTILE in page.locator(".nb-unit-said").all_text_contents()
    kernel_says(page, "browser.k = 50")
    page.wait_for_function("() => document.querySelectorAll('.nb-exemplar').length === 50")
    assert HOSTILE in page.locator(".nb-label").all_text_contents() and f"{HOSTILE}.png" in page.locator(".nb-id").all_text_contents()
    assert page.locator(f"{BROWSER} img").count() == 0 and page.title() != "broken in"
    page.screenshot(path=ARTIFACTS / "browser_hostile.png")


# pins


def test_pins_collect_go_back_and_export(page):
    page.keyboard.press("p")
    page.keyboard.press("ArrowRight")
    wait_for_unit(page, 1)
    page.get_by_role("button", name="☆ Pin").click()
    assert page.locator(".nb-chip").all_text_contents() == ["maps · 0×", "maps · 1×"]
    page.get_by_label("Layer", exact=True).select_option("vector")
    wait_for_unit(page, 0, "vector")
    page.get_by_label("Show maps unit 1").click()
    wait_for_unit(page, 1, "maps")
    page.screenshot(path=ARTIFACTS / "browser_pins.png")
    with page.expect_download() as download:
        page.get_by_role("button", name="Export CSV").click()
    table = pd.read_csv(download.value.path())
    assert download.value.suggested_filename == "pinned_units.csv"
    assert table.columns.tolist() == ["layer", "unit", "description", "similarity", "method"]
    assert set(table["unit"]) == {0, 1} and HOSTILE in table["description"].tolist()
    wait_for_python(page, f"browser.pins['unit'].tolist() == {table['unit'].tolist()}")
    page.get_by_label("Unpin maps unit 0").click()
    page.wait_for_function("() => document.querySelectorAll('.nb-chip').length === 1")


# how it looks


@pytest.mark.parametrize("width", [700, 900, 1400])
def test_nothing_overflows_at_any_width(page, width):
    page.locator(BROWSER).evaluate("(root, width) => { root.style.width = `${width}px`; }", width)
    page.wait_for_timeout(200)
    inside = page.locator(BROWSER).evaluate(
        """root => { const { left, right } = root.getBoundingClientRect();
                     const shown = [...root.querySelectorAll('*')].filter(e => e.getClientRects().length);
                     const outside = box => box.right > right + 1 || box.left < left - 1;
                     const out = shown.filter(e => outside(e.getBoundingClientRect()));
                     return [root.scrollWidth <= root.clientWidth, out.map(e => e.className)]; }""")
    page.locator(BROWSER).screenshot(path=ARTIFACTS / f"browser_{width}.png")
    page.locator(BROWSER).evaluate("root => { root.style.width = ''; }")
    assert inside == [True, []]


def test_every_control_has_a_name(page):
    unnamed = page.locator(f"{BROWSER} :is(input, select, button)").evaluate_all(
        """all => all.filter(one => !one.getAttribute('aria-label') && !one.textContent.trim())
                  .map(one => one.outerHTML)""")
    assert unnamed == []


def test_the_dark_theme_is_dark(page):
    page.evaluate("jupyterapp.commands.execute('apputils:change-theme', { theme: 'JupyterLab Dark' })")
    page.wait_for_function("() => document.body.dataset.jpThemeLight === 'false'")
    page.wait_for_timeout(500)
    page.screenshot(path=ARTIFACTS / "browser_dark.png")
    paper = page.locator(BROWSER).evaluate("root => getComputedStyle(root).backgroundColor.match(/\\d+/g).map(Number)")
    page.evaluate("jupyterapp.commands.execute('apputils:change-theme', { theme: 'JupyterLab Light' })")
    page.wait_for_function("() => document.body.dataset.jpThemeLight === 'true'")
    assert max(paper[:3]) < 80


def test_the_page_had_nothing_to_complain_about(page, chromium):
    assert chromium.errors == []


def test_a_view_that_is_cleared_takes_off_what_it_put_on_the_page(opened, chromium):
    hiding = "[...document.head.querySelectorAll('style')].filter(style => style.textContent.includes('data-nb-still')).length"
    assert opened.evaluate(hiding) == 1
    opened.evaluate("jupyterapp.commands.execute('notebook:clear-all-cell-outputs')")
    opened.wait_for_function(f"() => {hiding} === 0")
    assert opened.locator(BROWSER).count() == 0 and chromium.errors == []


# descriptions without a network


def test_published_descriptions_open_without_a_network(lab, chromium):
    write_notebook(lab.folder / "words.ipynb", 'import neuronbench as nb\nnb.browse_descriptions(nb.published("alexnet-caffe", "network-dissection"))')
    page = chromium.open(lab, "words.ipynb")
    run_all(page)
    words = nb.published("alexnet-caffe", "network-dissection").set_index("unit").description
    view = page.locator(".nb-descriptions-browser")
    view.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_selector('.nb-descriptions-browser[data-unit="1"]')
    assert page.locator(".nb-said").all_text_contents() == [words[1]] and listed(page)[:3] == [0, 1, 2]
    page.keyboard.press("/")
    page.keyboard.type("wheel")
    page.wait_for_function("count => document.querySelector('.nb-hits').textContent === `${count} of 256 units`", arg=words.str.contains("wheel").sum().item())
    page.keyboard.press("Enter")
    first = words.index[words.str.contains("wheel")].min()
    page.wait_for_selector(f'.nb-descriptions-browser[data-unit="{first}"]')
    assert page.locator(".nb-said").all_text_contents() == [words[first]] and page.locator("[data-nb-still]").is_hidden()
    assert 'nb.Target(model, layers=["conv5"]' in page.locator(".nb-opening").text_content() and "MIT, Copyright" in page.locator(".nb-about").text_content()
    page.screenshot(path=ARTIFACTS / "descriptions_browser.png")
    page.context.close()


# the first lesson


def test_the_first_lesson_runs_and_its_browser_works(lab, chromium):
    shutil.copy(LESSON, lab.folder)
    page = chromium.open(lab, LESSON.name)
    run_all(page, seconds=300)
    page.locator(BROWSER).scroll_into_view_if_needed()
    first = int(kernel_says(page, "print(browser.unit)"))
    page.wait_for_selector(f'{BROWSER}[data-unit="{first}"]:not([data-waiting])')
    page.locator(BROWSER).focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("first => document.querySelector('.nb-browser').dataset.unit !== String(first)", arg=first)
    assert_exemplars_are_the_top(page)
    page.screenshot(path=ARTIFACTS / "lesson.png")
    drag(page.get_by_label("Unit", exact=True), 0.7)
    unit = page.get_by_label("Unit number", exact=True).input_value()
    page.wait_for_selector(f'{BROWSER}[data-unit="{unit}"]:not([data-waiting])')
    assert_exemplars_are_the_top(page)
    assert chromium.errors == []


def assert_exemplars_are_the_top(page):
    """The page shows the images and activations that the recording in the kernel ranks first."""
    layer, unit = page.locator(BROWSER).evaluate("root => [root.dataset.layer, Number(root.dataset.unit)]")
    code = (f"import json\ntop = browser.recording.top({layer!r}, {unit}, browser.k)\n"
            "print(json.dumps([top['image'].tolist(), top['activation'].tolist()]))")
    images, activations = json.loads(kernel_says(page, code))
    on_page = exemplars_on(page)
    assert [one[0] for one in on_page] == images and [one[1] for one in on_page] == [readable_number(value) for value in activations]
