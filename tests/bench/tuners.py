"""How soon a tuner follows the hand: from a control's event to the redrawn page, in JupyterLab and Chromium with a real kernel, on the embedded world."""

import sys
import tempfile
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from browser_lab import Chromium, JupyterLab, kernel_says, run_all, write_notebook  # noqa: E402

REDRAW_LIMIT, SCORES_LIMIT = 100, 50  # ms
STEPS = 30
CODE = """import neuronbench as nb
from neuronbench.describe.describe_and_dissect.method import DescribeAndDissect
from neuronbench.embedded.drawing.painter import ScenePainter
from neuronbench.embedded.world import World
from neuronbench.foundation.captioner import ConceptCaptioner
from neuronbench.foundation.consensus import Consensus
from neuronbench.widgets.tuners import tune
world = World(scenes=500)
recording = nb.record(world.target, world.images, progress=False)
captioner = ConceptCaptioner(world.clip, sorted(set(world.captions))[:200])
method = DescribeAndDissect(captioner, Consensus(), ScenePainter(), world.clip, summarise=False, exemplars=5)
unit = int(world.truth.query("layer == 'layer3' and description == 'wheel'").unit.iloc[0])
bench = tune(method, recording, world.images, "layer3", unit)
bench"""
RUN = "bench.scoring.run(); bench.scoring.work.wait()"  # other crops have made an earlier trace worthless

# The time between a control's event and the frame after the one in which what it set is drawn.
MEASURE = """(selector) => {
  const root = document.querySelector(selector);
  window.delays = [];
  root.addEventListener('input', (event) => {
    const before = root.dataset.drawn;
    const look = () => root.dataset.drawn === before
      ? requestAnimationFrame(look)
      : requestAnimationFrame(() => window.delays.push(performance.now() - event.timeStamp));
    requestAnimationFrame(look);
  }, true);
}"""
SCORES = """import time
from statistics import median
taken = []
for step in range(40):
    start = time.perf_counter()
    bench.scoring.set_state({"beta": 1 + step % 9, "scoring": list(bench.scoring.functions)[step % 4]})
    taken.append(1000 * (time.perf_counter() - start))
print(median(taken))"""


def delays(page, selector, slider, steps=STEPS):
    """Milliseconds from each of `steps` presses of an arrow key on a slider to the page redrawn."""
    page.evaluate(MEASURE, selector)
    page.get_by_label(slider, exact=True).focus()
    for step in range(steps):
        page.keyboard.press("ArrowRight" if step % 10 < 5 else "ArrowLeft")
        page.wait_for_function("count => window.delays.length === count", arg=step + 1, timeout=30_000)
        page.wait_for_timeout(100)
    return page.evaluate("window.delays")


def rows():
    with tempfile.TemporaryDirectory() as folder, JupyterLab(folder) as lab, Chromium() as chromium:
        write_notebook(Path(folder, "bench.ipynb"), CODE)
        page = chromium.open(lab, "bench.ipynb")
        run_all(page, seconds=600)
        page.wait_for_selector(".nb-crops-tuner[data-drawn]")
        page.wait_for_timeout(3000)
        crops = median(delays(page, ".nb-crops-tuner", "Threshold"))
        kernel_says(page, RUN, seconds=300)
        page.get_by_role("tab", name="Scoring").click()
        page.wait_for_selector(".nb-scoring-tuner[data-drawn]")
        scores = median(delays(page, ".nb-scoring-tuner", "β, best ranks"))
        kernel = float(kernel_says(page, SCORES))
    yield "crops tuner: slider event to redrawn page of ten exemplars, median", crops, "ms", f"<= {REDRAW_LIMIT}", crops <= REDRAW_LIMIT
    yield "scoring tuner: change of function or beta, in the kernel, median", kernel, "ms", f"<= {SCORES_LIMIT}", kernel <= SCORES_LIMIT
    yield "scoring tuner: slider event to redrawn candidates, median", scores, "ms", f"<= {REDRAW_LIMIT}", scores <= REDRAW_LIMIT
