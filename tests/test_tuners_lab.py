"""The tuners in JupyterLab and Chromium: what a person sees when dragging, typing, running, stopping, comparing and copying.

Screenshots are kept in artifacts/. Without Chromium these tests fail with a sentence that says what to install.
"""

import json
from pathlib import Path

import pandas as pd
import pytest
from browser_lab import Chromium, JupyterLab, kernel_says, run_all, write_notebook
from test_browser_lab import ARTIFACTS, wait_for_python
from tiny_recording import HOSTILE

HERE = Path(__file__).parent
CODE = f"""import sys, tempfile, threading
sys.path.insert(0, {str(HERE)!r})
import numpy as np, pandas as pd
from tiny_recording import HOSTILE, tiny_recording
from tuner_fakes import Talker, fake_method
from neuronbench.widgets.tuners import tune

def largest(activations):
    return np.nanmax(activations, 1)

def hasty(activations):
    raise RuntimeError(HOSTILE)

gate = threading.Event()
gate.set()
recording = tiny_recording()
truth = pd.DataFrame({{"layer": "maps", "unit": [3, 4, 5], "description": ["red", "very red", HOSTILE]}})
start = fake_method(gate, exemplars=10)
bench = tune(start, recording, recording.images, "maps", 3, truth, {{"loud": Talker("loud", HOSTILE + " ")}}, [largest, hasty], tempfile.mkdtemp())
bench"""
AS_AT_FIRST = """
bench.layer, bench.unit, bench.bar.tab, bench.method = 'maps', 3, 0, start
bench.prompts.load('as given'); bench.prompts.chosen = bench.prompts.message = ''; bench.prompts.rows = []
bench.compare.chosen = bench.compare.query = ''; bench.compare.only_disagreeing = False
"""
RESULT = """import json
right = sum(bool(row[side]['right']) for row in bench.prompts.rows for side in ('before', 'after'))
print(json.dumps([bench.prompts.summary, right]))"""
IDLE = "() => [...document.querySelectorAll('.nb-tuner')].every(one => !one.hasAttribute('data-running'))"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab on a folder with the workbench in a notebook."""
    folder = tmp_path_factory.mktemp("lab")
    write_notebook(folder / "tuners.ipynb", CODE)
    ARTIFACTS.mkdir(exist_ok=True)
    with JupyterLab(folder) as server:
        yield server


@pytest.fixture(scope="module")
def chromium():
    with Chromium(1500, 1300) as chromium:
        yield chromium


@pytest.fixture(scope="module")
def opened(lab, chromium):
    """The page with the notebook run."""
    page = chromium.open(lab, "tuners.ipynb")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    run_all(page)
    page.wait_for_selector(".nb-crops-tuner[data-drawn]")
    page.evaluate("jupyterapp.commands.execute('application:toggle-left-area')")
    return page


@pytest.fixture
def page(opened):
    """The workbench as at first, on its crops."""
    opened.wait_for_function(IDLE)
    kernel_says(opened, AS_AT_FIRST)
    opened.wait_for_selector(".nb-crops-tuner[data-drawn^='maps 3 ']")
    return opened


def open_tab(page, name):
    page.get_by_role("tab", name=name).click()
    part = page.locator(f".nb-tuner:is(.nb-{name.lower()}-tuner, .nb-{name.lower()})").filter(visible=True)
    part.wait_for()
    return part


def press_run(page, part):
    part.locator(".nb-run").click()
    page.wait_for_function(IDLE)


# dragging


def test_crops_are_redrawn_while_the_threshold_is_dragged(page):
    part = page.locator(".nb-crops-tuner")
    page.evaluate("""() => { window.drawn = []; const root = document.querySelector('.nb-crops-tuner');
                     new MutationObserver(() => window.drawn.push(root.dataset.drawn)).observe(root, { attributes: true, attributeFilter: ['data-drawn'] }); }""")
    box = part.get_by_label("Threshold", exact=True).bounding_box()
    at = lambda share: (box["x"] + 8 + share * (box["width"] - 16), box["y"] + box["height"] / 2)  # noqa: E731
    page.mouse.move(*at(0.3))
    page.mouse.down()
    for step in range(1, 9):
        page.mouse.move(*at(0.3 + 0.06 * step))
        page.wait_for_timeout(150)
    during = len(set(page.evaluate("window.drawn")))
    page.mouse.up()
    level = float(part.get_by_label("Threshold", exact=True).input_value())
    page.wait_for_selector(f".nb-crops-tuner[data-drawn='maps 3 4 0.5 0.8 0.0 {level} bilinear']")
    assert during >= 3 and 190 < level < 215
    wait_for_python(page, f"bench.method.crops.threshold == {level}")
    code = """import json
from neuronbench.widgets.crops_tuner import page_steps
best = bench.crops.best
print(json.dumps([len(one.boxes) for one in page_steps(best.maps[0], bench.crops.settings, 60)]))"""
    expected = json.loads(kernel_says(page, code))
    assert part.locator(".nb-exemplar").evaluate_all("all => all.map(one => one.querySelectorAll('.nb-crop').length)") == expected
    assert part.locator(".nb-exemplar").evaluate_all("all => all.map(one => one.querySelectorAll('.nb-box').length)") == expected
    part.screenshot(path=ARTIFACTS / "tuner_crops.png")
    part.get_by_label("Otsu's threshold").check()
    wait_for_python(page, "bench.crops.threshold is None")


def test_a_layer_without_maps_is_told(page):
    page.get_by_label("Layer", exact=True).filter(visible=True).select_option("vector")
    page.get_by_text("This layer has no activation maps").wait_for()
    assert page.locator(".nb-crops-tuner .nb-exemplar").count() == 10 and page.locator(".nb-crop").count() == 0


# typing and running


def test_a_prompt_is_rewritten_and_ten_units_are_compared(page):
    part = open_tab(page, "Prompts")
    part.get_by_label("Units to run on").fill("3-12")
    area = part.get_by_label("Summarise what they share")
    area.fill("EMPHASIS, please")
    part.get_by_text("has no placeholder {descriptions}").wait_for()
    assert part.locator(".nb-run").is_disabled()
    part.screenshot(path=ARTIFACTS / "tuner_prompts_problem.png")
    area.press("End")
    area.press("Enter")
    area.type("{descriptions}")
    part.get_by_text("has no placeholder").wait_for(state="hidden")
    part.get_by_role("button", name="Count tokens").click()
    part.get_by_text("tokens to send").wait_for()
    press_run(page, part)
    part.locator(".nb-answers tbody tr").nth(9).wait_for()
    summary, right = json.loads(kernel_says(page, RESULT))
    part.get_by_text(summary).wait_for()
    assert summary.startswith("10 of 10 descriptions changed.") and part.locator(".nb-right").count() == right > 0
    assert [text.split()[0] for text in part.locator(".nb-added").all_text_contents()] == ["very"] * 10
    part.get_by_label("Name of this version").fill("emphasis")
    part.get_by_role("button", name="Save", exact=True).click()
    part.get_by_text("Saved as").wait_for()
    page.screenshot(path=ARTIFACTS / "tuner_prompts.png")
    part.get_by_label("Saved prompts").select_option("as given")
    wait_for_python(page, "bench.method.prompts == type(bench.method.prompts)()")
    assert "EMPHASIS" not in area.input_value()


def test_keys_in_a_prompt_stay_in_it(page):
    part = open_tab(page, "Prompts")
    prompts = page.locator(".jp-InputPrompt").all_text_contents()
    area = part.get_by_label("Paint a candidate")
    area.fill("")
    area.type("dd x {candidate}")
    area.press("Shift+Enter")
    area.type("jk")
    assert area.input_value() == "dd x {candidate}\njk" and page.locator(".jp-InputPrompt").all_text_contents() == prompts
    wait_for_python(page, "bench.method.prompts.paint == 'dd x {candidate}\\njk'")
    area.press("Control+Enter")
    part.locator(".nb-answers tbody tr").first.wait_for()
    page.wait_for_function(IDLE)
    assert page.locator(".jp-InputPrompt").all_text_contents() == prompts


def test_a_run_is_visible_and_can_be_stopped(page):
    part = open_tab(page, "Prompts")
    kernel_says(page, "gate.clear()\nstart.captioner.known.clear()")
    part.locator(".nb-run").click()
    part.get_by_role("button", name="Stop").wait_for()
    assert part.locator(".nb-run").is_disabled() and part.locator("progress").is_visible()
    page.get_by_label("Unit number", exact=True).filter(visible=True).fill("7")
    page.keyboard.press("Enter")
    wait_for_python(page, "bench.unit == 7")  # the kernel answers meanwhile
    part.screenshot(path=ARTIFACTS / "tuner_running.png")
    part.get_by_role("button", name="Stop").click()
    wait_for_python(page, "bench.prompts.work._watch.stopping.is_set()")
    kernel_says(page, "gate.set()")
    part.get_by_text("Stopped at captions").wait_for()
    page.wait_for_function(IDLE)


# scoring


def test_another_function_reorders_the_candidates_and_says_why(page):
    kernel_says(page, "from dataclasses import replace\nbench.method = replace(bench.method, summarise=False)")
    part = open_tab(page, "Scoring")
    press_run(page, part)
    part.locator(".nb-candidate").first.wait_for()
    part.screenshot(path=ARTIFACTS / "tuner_scoring.png")
    for name in ("mean", "topk_squared", "largest"):
        part.get_by_label("Scoring function").select_option(name)
        page.wait_for_selector(f".nb-scoring-tuner[data-drawn^='maps 3 {name} ']")
        trace = json.loads(kernel_says(page, "import json; print(json.dumps([bench.scoring.trace.description, bench.scoring.trace.scores.candidate.tolist()]))"))
        assert part.locator(".nb-candidate .nb-said").all_text_contents() == trace[1]
        assert part.locator(".nb-winner .nb-said").text_content() == trace[0]
        assert part.locator(".nb-reason").text_content().startswith(f"“{trace[0]}”")
    assert HOSTILE in part.locator(".nb-error").text_content()
    part.get_by_label("β, best ranks").fill("1")
    part.get_by_label("Scoring function").select_option("topk_squared")
    page.wait_for_selector(".nb-scoring-tuner[data-drawn^='maps 3 topk_squared 1 ']")
    assert part.locator(".nb-counts").count() == part.locator(".nb-candidate").count()
    part.get_by_label("Scoring function").select_option("hasty")
    page.wait_for_selector(".nb-scoring-tuner[data-drawn^='maps 3 hasty ']")
    assert HOSTILE in part.locator(".nb-reason").text_content()


# comparing


def test_two_settings_are_compared_filtered_and_exported(page, chromium, tmp_path):
    kernel_says(page, "bench.prompts.load('as given'); bench.prompts.chat = 'loud'")
    part = open_tab(page, "Compare")
    part.get_by_label("Units in the table").fill("2-8")
    page.keyboard.press("Enter")
    page.wait_for_selector(".nb-compare[data-listed='7']")
    press_run(page, part)
    wait_for_python(page, "len(bench.compare.table) == 12")
    part.locator("tr[data-unit='3'] .nb-thumbnail").nth(4).wait_for()
    assert part.locator("tr[data-unit='3'] .nb-said-small").nth(1).text_content().startswith(HOSTILE)
    part.screenshot(path=ARTIFACTS / "tuner_compare.png")
    part.get_by_label("only where they disagree").check()
    page.wait_for_selector(".nb-compare[data-listed='6']")
    with page.expect_download() as download:
        part.get_by_role("button", name="Export CSV").click()
    table = pd.read_csv(download.value.path())
    assert sorted(set(table["unit"])) == list(range(3, 9)) and set(table["method"]) == {"as given", "tuned"}
    with page.expect_download() as download:
        part.get_by_role("button", name="Save page").click()
    download.value.save_as(tmp_path / "page.html")
    look_at_page(chromium, tmp_path / "page.html")


def look_at_page(chromium, path):
    """The saved page, opened from the disk: all rows and pictures, text as text."""
    page = chromium.browser.new_context(viewport={"width": 1100, "height": 900}, offline=True).new_page()
    page.goto(f"file://{path}")
    assert page.locator("tbody tr").count() == 6 and page.get_by_text(HOSTILE).count() >= 6 and page.title() == "maps: 6 units"
    assert page.locator("img").evaluate_all("all => all.every(one => one.complete && one.naturalWidth > 0)") and page.locator("img").count() == 30
    page.screenshot(path=ARTIFACTS / "tuner_page.png", full_page=True)
    page.context.close()


# copying


@pytest.mark.parametrize("tab", ["Crops", "Prompts", "Scoring", "Compare"])
def test_the_code_is_copied_and_makes_what_was_tuned(page, tab):
    kernel_says(page, "bench.crops.threshold, bench.scoring.beta, bench.prompts.candidates = 90.0, 2, 3")
    part = open_tab(page, tab)
    wait_for_python(page, "bench.method.beta == 2 and bench.method.crops.threshold == 90")
    page.wait_for_timeout(300)
    part.get_by_role("button", name="Copy as code").click()
    part.get_by_role("button", name="Copied").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    part.get_by_text("Code", exact=True).click()
    assert part.locator(".nb-code code").text_content() == copied
    names = "dict(recording=recording, captioner=start.captioner, chat=start.chat, painter=start.painter, clip=start.clip, truth=truth)"
    said = kernel_says(page, f"names = {names}\nexec({copied!r}, names)\nprint(names.get('crops') or getattr(names.get('method'), 'beta', None) or names['compare'])")
    assert said.strip() == {"Crops": "CropSettings(max_crops=4, max_iou=0.5, max_cover=0.8, min_area=0.0, threshold=90.0, upsampling='bilinear')",
                            "Prompts": "2", "Scoring": "2", "Compare": "Compare(layer='maps', unit=0)"}[tab]


# how it looks


@pytest.mark.parametrize("width", [700, 900, 1400])
def test_nothing_overflows_at_any_width(page, width):
    for tab in ("Crops", "Prompts", "Scoring", "Compare"):
        part = open_tab(page, tab)
        outside = part.evaluate(
            """async (root, width) => {
                 root.style.width = `${width}px`;
                 await new Promise((done) => setTimeout(done, 150));
                 const { left, right } = root.getBoundingClientRect();
                 const scrolled = (one) => one.closest('.nb-scrolled, pre, .nb-boxes') !== null;
                 const shown = [...root.querySelectorAll('*')].filter((one) => one.getClientRects().length && !scrolled(one));
                 const out = shown.filter((one) => { const box = one.getBoundingClientRect(); return box.right > right + 1 || box.left < left - 1; });
                 const whole = root.scrollWidth <= root.clientWidth;
                 root.style.width = '';
                 return [whole, out.map((one) => one.className)];
               }""", width)
        assert outside == [True, []], tab


def test_every_control_has_a_name(page):
    for tab in ("Crops", "Prompts", "Scoring", "Compare"):
        unnamed = open_tab(page, tab).locator("input, select, button, textarea").filter(visible=True).evaluate_all(
            """all => all.filter(one => !one.getAttribute('aria-label') && !one.textContent.trim() && !one.closest('label')?.textContent.trim())
                      .map(one => one.outerHTML)""")
        assert unnamed == [], tab


def test_tabs_and_units_can_be_chosen_by_keys(page):
    page.get_by_role("tab", name="Crops").focus()
    page.keyboard.press("ArrowRight")
    page.locator(".nb-prompts-tuner").filter(visible=True).wait_for()
    page.keyboard.press("ArrowLeft")
    page.locator(".nb-crops-tuner").filter(visible=True).wait_for()
    page.locator(".nb-crops-tuner").focus()
    page.keyboard.press("j")
    page.wait_for_selector(".nb-crops-tuner[data-drawn^='maps 4 ']")
    wait_for_python(page, "bench.unit == 4")


def test_hostile_text_stays_text(page):
    kernel_says(page, "bench.prompts.message = bench.crops.message = HOSTILE")
    page.get_by_text(HOSTILE).first.wait_for()
    assert page.locator(".nb-tuner img").count() == 0 and page.title() != "broken in"


def test_the_dark_theme_is_dark(page):
    page.evaluate("jupyterapp.commands.execute('apputils:change-theme', { theme: 'JupyterLab Dark' })")
    page.wait_for_function("() => document.body.dataset.jpThemeLight === 'false'")
    page.wait_for_timeout(500)
    page.screenshot(path=ARTIFACTS / "tuner_dark.png")
    paper = page.locator(".nb-crops-tuner").evaluate("root => getComputedStyle(root).backgroundColor.match(/\\d+/g).map(Number)")
    page.evaluate("jupyterapp.commands.execute('apputils:change-theme', { theme: 'JupyterLab Light' })")
    page.wait_for_function("() => document.body.dataset.jpThemeLight === 'true'")
    assert max(paper[:3]) < 80


def test_the_page_had_nothing_to_complain_about(page, chromium):
    assert chromium.errors == []
