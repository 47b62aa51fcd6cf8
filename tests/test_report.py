"""The report: nothing from outside, text as text, units without words, and what cannot be reported."""

import re
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pytest
from browser_lab import FLAGS, find_chromium
from playwright.sync_api import expect, sync_playwright
from test_study import HOSTILE, recording  # noqa: F401

from neuronbench.probe.recording import record
from neuronbench.show.report import method_settings, write_report


def described(*rows):
    return pd.DataFrame([("0", unit, text, 0.5, method) for unit, text, method in rows], columns=["layer", "unit", "description", "score", "method"])


def test_the_page_is_whole_and_escaped(recording, tmp_path):  # noqa: F811
    table = described((0, HOSTILE, "A"), (1, "</article><b>x", HOSTILE), (2, None, "A"))
    comparison = pd.DataFrame({"measure": [HOSTILE], "method": ["A"], "units": [2], "mean": [0.5], "low": [np.nan], "high": [np.nan]})
    failures = [{"layer": "0", "unit": 2, "method": HOSTILE, "step": "look", "reason": HOSTILE}]
    page = write_report(tmp_path / "r.html", recording, table, comparison, failures, {HOSTILE: HOSTILE}, title=HOSTILE).read_text()
    assert page.count("<article") == 3 == page.count("</article>") and "<img src=x" not in page and "&lt;img src=x" in page
    assert not re.findall(r"(?:src|href)=\"(?!data:image/)", page) and "default-src 'none'" in page


def test_a_constant_that_beats_a_method_is_said_in_words(recording, tmp_path):  # noqa: F811
    rows = [("CLIP cosine", "A", 3, 0.5, 0.4, 0.6), ("CLIP cosine", f"constant: {HOSTILE}", 3, 0.6, 0.6, 0.6)]
    comparison = pd.DataFrame(rows, columns=["measure", "method", "units", "mean", "low", "high"])
    page = write_report(tmp_path / "r.html", recording, described((0, "red", "A")), comparison).read_text()
    assert "said of every unit, gets 0.600. No better than that: A." in page and "<img src=x" not in page
    better = comparison.assign(mean=[0.7, 0.6])
    assert "No better than that" not in write_report(tmp_path / "r.html", recording, described((0, "red", "A")), better).read_text()


def test_exemplars_are_ranked_by_the_pooling_asked_for(recording, tmp_path):  # noqa: F811
    both = record(recording.target, recording.images, pool=("mean", "max"), progress=False)
    pages = {pool: write_report(tmp_path / "r.html", both, described((0, "red", "A")), pool=pool).read_text() for pool in (None, "max")}
    assert "pooled: 0 by mean." in pages[None] and "pooled: 0 by max." in pages["max"]
    strip = lambda page: re.search('alt="exemplars of unit 0 of 0" src="([^"]*)"', page)[1]  # noqa: E731
    assert strip(pages[None]) != strip(pages["max"])
    with pytest.raises(KeyError, match="no recorded pooling 'max'"):
        write_report(tmp_path / "r.html", recording, described((0, "red", "A")), pool="max")


def test_what_a_method_was_given_is_told_by_its_content():
    @dataclass(frozen=True)
    class Method:
        words: object = field(repr=False)
        labels: object = field(repr=False)
        model: object = None
        share: float = 0.5
        prompt: str = field(default="say {}", repr=False)

    class Model:
        fingerprint = "abc"

        def __repr__(self):
            return "Model()"

    labels = pd.DataFrame({"boat": [True, False]})
    told = method_settings(Method(["a", "b"], labels, Model()))
    assert told.splitlines()[0].endswith("Method(model=Model(), share=0.5)") and "words: 2 entries, fingerprint" in told and "prompt: 'say {}'" in told
    assert told == method_settings(Method(["a", "b"], labels.copy(), Model()))
    for other in (Method(["a", "c"], labels, Model()), Method(["a", "b"], ~labels, Model())):
        assert method_settings(other) != told and method_settings(other).splitlines()[0] == told.splitlines()[0]


def test_it_opens_offline_and_finds_units(recording, tmp_path):  # noqa: F811
    path = write_report(tmp_path / "r.html", recording, described((0, "red things", "A"), (1, "blue sky", "A"), (2, HOSTILE, "A")))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        page, said, asked = browser.new_page(), [], []
        page.on("console", lambda message: said.append(message.text))
        page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        assert page.locator("article img").evaluate_all("images => images.every(image => image.complete && image.naturalWidth > 200)")
        page.locator("#find").fill("BLUE")
        expect(page.locator("#found")).to_have_text("1 of 3 units")
        expect(page.locator("article:visible h3")).to_have_text("0, unit 1")
        browser.close()
    assert not said and all(url.startswith(("file:", "data:")) for url in asked)


def test_what_cannot_be_reported(recording, tmp_path):  # noqa: F811
    with pytest.raises(ValueError, match="describe some units first"):
        write_report(tmp_path / "r.html", recording, described())
    told = described((0, "red", "A"))
    for options, error, sentence in (({"comparison": told}, ValueError, "missing: measure, units, mean, low, high"), ({"settings": "k=8"}, TypeError, "settings are texts by the names"),
                                     ({"failures": "none"}, TypeError, "failures are a list of dicts"), ({"failures": [{"layer": "0"}]}, TypeError, "keys layer, unit, method, step, reason")):
        with pytest.raises(error, match=sentence):
            write_report(tmp_path / "r.html", recording, **{"descriptions": told, **options})
    with pytest.raises(IndexError, match="99"):
        write_report(tmp_path / "r.html", recording, described((99, "red", "A")))
    assert not (tmp_path / "r.html").exists()
