"""The checks that CI makes on the notebooks, each made to fail on a small copy of the project."""
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def copy(tmp_path):
    """The project with two notebooks only, exported and consistent."""
    for name in ("nbs/00_basics.ipynb", "nbs/index.ipynb", "settings.ini", ".ci/build.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "neuronbench").mkdir()
    assert build(tmp_path, "export").returncode == 0
    return tmp_path


def build(root, command):
    return subprocess.run([sys.executable, root / ".ci" / "build.py", command], capture_output=True, text=True)


def edit(notebook, change):
    content = json.loads(notebook.read_text())
    change(content)
    notebook.write_text(json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True) + "\n")


def test_a_consistent_project_passes(copy):
    done = build(copy, "check")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 notebooks are clean" in done.stdout


def test_a_module_edited_by_hand_is_found(copy):
    module = copy / "neuronbench" / "basics.py"
    module.write_text(module.read_text() + "\nextra = 1\n")
    done = build(copy, "check")
    assert done.returncode == 1 and "basics.py: differs from its notebook" in done.stdout


def test_a_stub_edited_by_hand_is_found_and_export_makes_it_anew(copy):
    stub = copy / "neuronbench" / "__init__.pyi"
    stub.write_text(stub.read_text() + "\nfrom .basics import choose as choose\n")
    done = build(copy, "check")
    assert done.returncode == 1 and "__init__.pyi: differs from its notebook" in done.stdout
    assert build(copy, "export").returncode == 0 and build(copy, "check").returncode == 0 and "choose" not in stub.read_text()


def test_a_module_without_a_notebook_is_found(copy):
    (copy / "neuronbench" / "orphan.py").write_text("x = 1\n")
    assert "orphan.py: differs" in build(copy, "check").stdout


def test_an_error_output_is_found(copy):
    failure = {"output_type": "error", "ename": "ValueError", "evalue": "", "traceback": []}

    def add(content):
        next(cell for cell in content["cells"] if cell["cell_type"] == "code")["outputs"] = [failure]

    edit(copy / "nbs" / "00_basics.ipynb", add)
    done = build(copy, "check")
    assert done.returncode != 0 and "holds an error output" in done.stdout


def test_metadata_of_a_run_is_found(copy):
    def add(content):
        next(cell for cell in content["cells"] if cell["cell_type"] == "code")["execution_count"] = 7

    edit(copy / "nbs" / "00_basics.ipynb", add)
    assert "is not clean" in build(copy, "check").stdout


def with_widget_state(content):
    content["metadata"].update(widgets={})


def with_a_printed_bar(content):
    bar = {"output_type": "stream", "name": "stderr", "text": ["embed:  40%|████      | 32/80 [00:01<00:02, 21.0it/s]"]}
    next(cell for cell in content["cells"] if cell["cell_type"] == "code")["outputs"] = [bar]


def with_a_bar_as_widget(content):
    bar = {"output_type": "display_data", "metadata": {}, "data": {"text/plain": "captions:   0%|          | 0/10 [00:00<?, ?it/s]"}}
    next(cell for cell in content["cells"] if cell["cell_type"] == "code")["outputs"] = [bar]


@pytest.mark.parametrize("leave", [with_widget_state, with_a_printed_bar, with_a_bar_as_widget])
def test_what_a_run_leaves_is_found_and_export_takes_it_out(copy, leave):
    before = (copy / "nbs" / "index.ipynb").read_text()
    edit(copy / "nbs" / "index.ipynb", leave)
    done = build(copy, "check")
    assert done.returncode > 0 and "nbs/index.ipynb: is not clean" in done.stdout
    assert build(copy, "export").returncode == 0 and build(copy, "check").returncode == 0
    kept = json.loads((copy / "nbs" / "index.ipynb").read_text())
    assert [cell["source"] for cell in kept["cells"]] == [cell["source"] for cell in json.loads(before)["cells"]] and "widgets" not in kept["metadata"]


def test_outputs_with_percentages_stay(copy):
    def add(content):
        next(cell for cell in content["cells"] if cell["cell_type"] == "code")["outputs"] = [{"output_type": "stream", "name": "stdout", "text": ["right: 50% | 3/6"]}]

    edit(copy / "nbs" / "index.ipynb", add)
    assert build(copy, "export").returncode == 0 and "right: 50%" in (copy / "nbs" / "index.ipynb").read_text()


def test_a_large_notebook_is_found(copy):
    def add(content):
        content["cells"][0]["source"] = "x" * 1_100_000

    edit(copy / "nbs" / "index.ipynb", add)
    assert "1.1 MB" in build(copy, "check").stdout


def test_a_stale_readme_is_found(copy):
    (copy / "README.md").write_text("old")
    done = build(copy, "check")
    assert done.returncode == 1 and "README.md: differs" in done.stdout
