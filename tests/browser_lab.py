"""JupyterLab on loopback and Chromium to look at it: used by the browser's tests, its benchmark, and people who want screenshots.

    with JupyterLab(folder) as lab, Chromium() as chromium:
        page = chromium.open(lab, "notebook.ipynb")
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import nbformat

MAC_CHROME = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
NO_CHROMIUM = (
    "the browser test needs Chromium and found none: install it with `sudo apt-get install chromium` (Debian, Ubuntu), "
    "`sudo dnf install chromium` (Fedora) or `brew install --cask google-chrome` (macOS), or set CHROMIUM to its path"
)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"windowingMode": "none"},
}
KERNEL_READY = """async () => {
  const context = window.jupyterapp?.shell.currentWidget?.sessionContext;
  await context?.ready;
  await context?.session?.kernel?.info; // cells that run before the kernel has introduced itself are lost
  return context?.session?.kernel?.status === 'idle';
}"""


def find_chromium() -> str:
    """The path of Chromium or Chrome. Errors: FileNotFoundError that says what to install."""
    names = [os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", MAC_CHROME]
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    if found is None:
        raise FileNotFoundError(NO_CHROMIUM)
    return found


class JupyterLab:
    """A JupyterLab server on loopback that serves `folder`, with its own settings and no dialogs; it ends with the block."""

    def __init__(self, folder, theme="JupyterLab Light", seconds=90):
        self.folder, self.theme, self.seconds = Path(folder), theme, seconds

    def __enter__(self):
        self.home = tempfile.TemporaryDirectory(prefix="neuronbench-lab-")
        self.token = secrets.token_hex(16)
        self._write_settings()
        self.log = open(Path(self.home.name, "lab.log"), "w+")
        self.server = subprocess.Popen(self._command(), cwd=self.folder, env=self._environment(), stdout=self.log, stderr=self.log)
        try:
            self.address = self._wait_for_address()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        """Ask the server to shut down its kernels and itself; end it by its id where it does not."""
        self.server.terminate()
        try:
            self.server.wait(20)
        except subprocess.TimeoutExpired:
            self.server.kill()
            self.server.wait(20)
        self.log.close()
        self.home.cleanup()

    def _command(self):
        return [
            sys.executable, "-m", "jupyterlab", "--no-browser", "--ip", "127.0.0.1", "--port", "0", "--allow-root",
            f"--IdentityProvider.token={self.token}", f"--ServerApp.root_dir={self.folder}", "--ServerApp.terminals_enabled=False",
            "--LabApp.extension_manager=readonly", "--LabApp.news_url=None", "--LabApp.expose_app_in_browser=True",
            "--LabApp.check_for_updates_class=jupyterlab.handlers.announcements.NeverCheckForUpdate",
        ]

    def _environment(self):
        folders = {f"JUPYTER_{name}_DIR": f"{self.home.name}/{name.lower()}" for name in ("CONFIG", "RUNTIME")}
        folders |= {f"JUPYTERLAB_{name}_DIR": f"{self.home.name}/{name.lower()}" for name in ("SETTINGS", "WORKSPACES")}
        return {**os.environ, **folders, "IPYTHONDIR": f"{self.home.name}/ipython", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}

    def _write_settings(self):
        settings = {**SETTINGS, "apputils-extension/themes": {"theme": self.theme}}
        for name, values in settings.items():
            path = Path(self.home.name, "settings", "@jupyterlab", f"{name}.jupyterlab-settings")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(values))

    def _wait_for_address(self):
        deadline = time.monotonic() + self.seconds
        while time.monotonic() < deadline and self.server.poll() is None:
            for path in Path(self.home.name, "runtime").glob("jpserver-*.json"):
                port = json.loads(path.read_text() or "{}").get("port")
                if port and self._answers(f"http://127.0.0.1:{port}/api?token={self.token}"):
                    return f"http://127.0.0.1:{port}"
            time.sleep(0.2)
        raise RuntimeError(f"JupyterLab did not start within {self.seconds} s:\n{Path(self.log.name).read_text()[-3000:]}")

    @staticmethod
    def _answers(address):
        try:
            return urllib.request.urlopen(address, timeout=5).status == 200
        except OSError:
            return False


class Chromium:
    """Headless Chromium driven by Playwright; it ends with the block. `errors` collects what the pages' consoles complain of."""

    def __init__(self, width=1400, height=1000, scale=1.0):
        self.size, self.scale, self.errors = {"width": width, "height": height}, scale, []

    def __enter__(self):
        path = find_chromium()
        from playwright.sync_api import sync_playwright

        self.playwright = sync_playwright().start()
        self.browser = self.playwright.chromium.launch(executable_path=path, args=FLAGS, headless=True)
        return self

    def __exit__(self, *_):
        self.browser.close()
        self.playwright.stop()

    def open(self, lab, notebook, seconds=60):
        """The page of JupyterLab with a notebook, ready to run."""
        context = self.browser.new_context(viewport=self.size, device_scale_factor=self.scale, accept_downloads=True)
        page = context.new_page()
        page.set_default_timeout(1000 * seconds)
        page.on("console", lambda message: message.type == "error" and self.errors.append(message.text))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto(f"{lab.address}/lab/tree/{notebook}?token={lab.token}&reset")
        page.wait_for_selector(".jp-Notebook .jp-Cell")
        page.wait_for_function(KERNEL_READY)
        return page


def write_notebook(path, code):
    """A notebook of one cell."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, path)


def run_all(page, seconds=120):
    """Run every cell through the menu, as a person would, and wait for the last. Errors: RuntimeError with a cell's own."""
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.wait_for_function(
        "() => [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].every(p => /\\[\\d+\\]/.test(p.textContent))",
        timeout=1000 * seconds,
    )
    failed = page.locator("[data-mime-type='application/vnd.jupyter.error']").all_text_contents()
    if failed:
        raise RuntimeError("\n".join(failed))


def kernel_says(page, code, seconds=60):
    """What `code` prints in the notebook's kernel. Errors: RuntimeError with the kernel's own."""
    said, error = page.evaluate(KERNEL_SAYS, [code, 1000 * seconds])
    if error:
        raise RuntimeError(error)
    return said


KERNEL_SAYS = """async ([code, limit]) => {
  const future = jupyterapp.shell.currentWidget.sessionContext.session.kernel.requestExecute({ code, store_history: false });
  let said = '', error = null;
  future.onIOPub = ({ content, header }) => {
    if (header.msg_type === 'stream') said += content.text;
    if (header.msg_type === 'error') error = content.traceback.join('\\n');
  };
  const late = new Promise((_, reject) => setTimeout(() => reject(new Error('the kernel did not answer')), limit));
  await Promise.race([future.done, late]);
  return [said, error];
}"""
