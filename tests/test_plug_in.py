"""A method of somebody else's package: installed, it is described with, compared, judged and reported like ours; a broken one is named and breaks nothing."""
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "plug_in" / "mean_colour.py"
BROKEN = {"lost": "no_such_module:Method", "wrong": "json:dumps", "half": "mean_colour_half:Half", "taken": "mean_colour_taken:Taken"}
HALF = "from dataclasses import dataclass\nimport neuronbench as nb\n@dataclass(frozen=True)\nclass Half(nb.Method):\n    name, label = 'half', 'Half'\n"
TAKEN = HALF.replace("Half", "Taken").replace("'half', 'Taken'", "'invert', 'Taken'") + "    def traces(self, recording, layer, units, watch=None):\n        return []\n"

BREVITY = """
from dataclasses import dataclass
import neuronbench as nb

@dataclass(frozen=True, eq=False)
class Brevity(nb.Measure):
    name = "brevity"
    gives = {"brevity": 0.0}

    def values(self, judged, recording):
        return judged.assign(brevity=[1 / len(text.split()) for text in judged.description])
"""


def wheel(folder, name, files, entry_points):
    """A wheel with these files {path: text} and entry points, without any build tool."""
    info = f"{name}-0.1.dist-info"
    files = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n", f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "".join(f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in entries.items()) for group, entries in entry_points.items())}
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    path = folder / f"{name}-0.1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for place, text in files.items():
            archive.writestr(place, text)
    return path


def installed(folder, *wheels):
    """An environment in which pip has installed the wheels, beside what is here."""
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", folder, *wheels], check=True)
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])}


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plugged")
    good = wheel(folder, "mean_colour", {"mean_colour.py": SOURCE.read_text(), "brevity.py": BREVITY}, {"neuronbench.methods": {"mean-colour": "mean_colour:MeanColour"}, "neuronbench.measures": {"brevity": "brevity:Brevity"}})
    broken = wheel(folder, "broken_methods", {"mean_colour_half.py": HALF, "mean_colour_taken.py": TAKEN}, {"neuronbench.methods": BROKEN})
    return installed(folder / "site", good, broken)


def ran(environment, *command, status=0):
    done = subprocess.run([sys.executable, *map(str, command)], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == status, done.stderr[-3000:]
    return done


def test_the_method_has_twenty_lines():
    lines = [line for line in SOURCE.read_text().split('"""', 2)[2].splitlines() if line.strip()]
    assert len(lines) <= 23  # seven of them imports and the table of colours


def test_the_page_shows_this_very_method():
    cells = json.loads((Path(__file__).parent.parent / "nbs" / "your_own_method.ipynb").read_text())["cells"]
    assert SOURCE.read_text().split('"""', 2)[2].strip() in ["".join(cell["source"]) for cell in cells]


CODE = """
import json, warnings
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    import neuronbench as nb
    names = list(nb.METHODS)
world, bench = nb.world(), nb.Workbench.demo()
units = world.truth.unit[world.truth.layer == "layer3"].tolist()
rows = bench.describe("layer3", "mean-colour", units=units, exemplars=5)

from neuronbench.widgets.compare import Compare
compare = Compare(world.recording, {"theirs": bench.method("mean-colour"), "ours": bench.method("invert", length=1)}, "layer3", units[:1], truth=world.truth)
compare.run()
compare.work.wait(240)

from neuronbench.evaluate.leaderboard import leaderboard, world_measures, world_methods
measures = world_measures(world)
board = leaderboard(world, methods=world_methods(world, ["mean-colour"]), measures={name: measures[name] for name in ("right", "brevity")})
assert "mean-colour" in world_methods(world)
report = bench.report(FOLDER + "/report.html").read_text() if FOLDER else ""
print(json.dumps({
    "names": names, "warnings": [str(warning.message) for warning in said], "methods": rows.method.unique().tolist(), "described": int(rows.description.notna().sum()),
    "missing": bench.methods().set_index("name").missing["mean-colour"], "trace": repr(bench.method("mean-colour").trace(world.recording, "layer3", units[0])),
    "compared": compare.rows[0]["answers"][0]["said"], "code": compare.code, "board": board[board.measure == "right"].method.unique().tolist(),
    "right": float(board[(board.measure == "right") & (board.method == "mean-colour")]["mean"].max()), "reported": "Mean colour" in report,
    "brevity": float(board[(board.measure == "brevity") & (board.method == "mean-colour")]["mean"].min())}))
"""


@pytest.fixture(scope="module")
def said(environment, tmp_path_factory):
    return json.loads(ran(environment, "-c", f"FOLDER = {str(tmp_path_factory.mktemp('report'))!r}\n{CODE}").stdout.splitlines()[-1])


def test_it_is_found_and_describes(said):
    assert "mean-colour" in said["names"] and "invert" in said["names"] and said["missing"] == ""
    assert said["methods"] == ["Mean colour"] and said["described"] > 20 and said["trace"].startswith("Trace of unit")


def test_it_is_compared_reported_and_judged(said):
    assert said["compared"] in ("red", "orange", "yellow", "green", "blue", "black", "white")
    assert said["reported"] and "mean-colour" in said["board"] and 0 < said["right"] < 1


def test_a_measure_of_somebody_elses_is_in_the_leaderboard(said):
    assert said["brevity"] == 1


def test_broken_ones_are_each_named_in_a_sentence(said):
    assert not set(BROKEN) & set(said["names"]) - {"invert"} and len(said["warnings"]) == len(BROKEN)
    for name in BROKEN:
        [sentence] = [each for each in said["warnings"] if repr(name) in each]
        assert sentence.startswith(f"the method {name!r} of the package broken") and "\n" not in sentence


def test_the_command_line_takes_it(environment, tmp_path):
    command = ["-m", "neuronbench.cli", "describe", "--network", "world", "--layer", "layer3", "--units", 1, 2, "--cards", 1, "--out", tmp_path]
    code = "import sys; from neuronbench.cli import main; sys.exit(main(sys.argv[1:]))"
    done = ran(environment, "-c", code, *command[2:], "--method", "mean-colour")
    assert "Mean colour" in done.stdout and (tmp_path / "descriptions.csv").read_text().count("layer3") == 4 and done.stderr.count("cannot be used") == len(BROKEN)
    assert "mean-colour" in ran(environment, "-c", code, "describe", "--help").stdout
    refused = ran(environment, "-c", code, *command[2:], "--method", "lost", status=2)
    assert "'lost'" in refused.stderr.splitlines()[-1] and "cannot be used" in refused.stderr.splitlines()[-1]
