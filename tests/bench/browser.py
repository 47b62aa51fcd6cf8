"""How soon a person sees the next unit: from the key press to its exemplars on screen, in JupyterLab and Chromium with a real kernel."""

import sys
import tempfile
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from browser_lab import Chromium, JupyterLab, run_all, write_notebook  # noqa: E402

LIMIT = 150  # ms
PRESSES = 30
CODE = """import neuronbench as nb
from neuronbench.embedded.world import World
world = World(scenes=500)
recording = nb.record(world.target, world.images, progress=False)
browser = nb.browse(recording, world.images, "layer3")
browser"""

# The time between a key's event and the frame after the one in which the unit it leads to is drawn.
MEASURE = """() => {
  const root = document.querySelector('.nb-browser');
  window.delays = [];
  root.addEventListener('keydown', (event) => {
    const before = root.dataset.unit;
    const look = () => root.dataset.unit === before || root.hasAttribute('data-waiting')
      ? requestAnimationFrame(look)
      : requestAnimationFrame(() => window.delays.push(performance.now() - event.timeStamp));
    requestAnimationFrame(look);
  }, true);
}"""


def delays(page, key, presses, pause):
    """Milliseconds from each of `presses` presses of `key`, `pause` ms apart, to the new exemplars on screen."""
    page.evaluate("window.delays = []")
    page.locator(".nb-browser").focus()
    for press in range(presses):
        page.keyboard.press(key)
        page.wait_for_function("count => window.delays.length === count", arg=press + 1, timeout=30_000)
        page.wait_for_timeout(pause)
    return page.evaluate("window.delays")


def rows():
    with tempfile.TemporaryDirectory() as folder, JupyterLab(folder) as lab, Chromium() as chromium:
        write_notebook(Path(folder, "bench.ipynb"), CODE)
        page = chromium.open(lab, "bench.ipynb")
        run_all(page)
        page.wait_for_selector(".nb-browser[data-unit]:not([data-waiting])")
        page.evaluate(MEASURE)
        page.wait_for_timeout(3000)
        far = median(delays(page, "PageDown", 5, 2000))  # units that were not fetched ahead
        near = median(delays(page, "ArrowLeft", PRESSES, 600))
    yield "browser: key press to new exemplars on screen, arrow key, median", near, "ms", f"<= {LIMIT}", near <= LIMIT
    yield "browser: the same for a jump of ten units", far, "ms", "no target", True
