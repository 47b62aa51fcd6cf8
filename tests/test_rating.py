"""The study as raters see it: two of them at once in Chromium, the server killed in the middle and started again, hostile text, edited links."""

import html
import json
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import psutil
import pytest
import websocket
from browser_lab import FLAGS, find_chromium
from playwright.sync_api import expect, sync_playwright
from test_study import HOSTILE, recording  # noqa: F401

from neuronbench import cli
from neuronbench.evaluate import answers
from neuronbench.evaluate.answers import FILE, Session
from neuronbench.evaluate.study import Study
from neuronbench.widgets.rating import Rating, rating_page, serve
from neuronbench.widgets.study_server import WrongLinks, is_own_name


def described(units=3):
    texts = {"A": HOSTILE, "B": "red things", "C": "{{ 7 * 7 }} \u05e9\u05dc\u05d5\u05dd"}
    rows = [("0", unit, f"{text} {unit}", 1.0, method) for unit in range(units) for method, text in texts.items()]
    return pd.DataFrame(rows, columns=["layer", "unit", "description", "score", "method"])


@pytest.fixture
def study(recording, tmp_path):  # noqa: F811
    return Study.design(tmp_path / "study", described(), recording, raters=2, per_unit=2)


def tokens(study):
    return study.links().link.str.partition("=")[2].tolist()


def click(rating, number, ratings, best, complete=True, place=None):
    rating._clicked(None, {"click": number, "place": rating.place if place is None else place, "ratings": ratings, "best": best, "complete": complete}, [])


def test_the_page_shows_what_is_kept(study):
    rating = Rating(Session(study.folder, tokens(study)[0]))
    assert rating.count == 3 and rating.place == 0 and len(rating.texts) == 3 and bytes(rating.sheet[:2]) == b"\xff\xd8"
    click(rating, 1, [4, None, None], None, complete=False)
    assert rating.ratings == [4, None, None] and rating.kept == 1 and rating.place == 0
    click(rating, 2, [4, 2, 1], 0)
    assert rating.place == 1 and rating.ratings == [None] * 3
    rating._clicked(None, {"back": True}, [])
    assert rating.place == 0 and rating.ratings == [4, 2, 1] and rating.best == 0
    for number in range(3):
        click(rating, 3 + number, [1, 2, 3], 2, place=number)
    assert rating.place == 3 and rating.texts == [] and study.progress().answered.tolist() == [3, 0]


@pytest.mark.parametrize("content", [{}, {"click": 1}, {"click": 1, "place": 99, "ratings": [1, 2, 3], "best": 0, "complete": True},
                                     {"click": 1, "place": 0, "ratings": [1, 2, HOSTILE], "best": 0, "complete": True}])
def test_what_a_page_may_not_send_is_not_kept(study, content):
    rating = Rating(Session(study.folder, tokens(study)[0]))
    rating._clicked(None, content, [])
    assert rating.problem.startswith("not kept") and rating.kept == 0 and len(study.responses()) == 0


def test_an_answer_that_cannot_be_kept_is_told_each_time(study, monkeypatch):
    monkeypatch.setattr(answers, "_PATIENCE", 0)
    rating = Rating(Session(study.folder, tokens(study)[0]))
    with answers.opened(study.path) as other:
        other.execute("BEGIN EXCLUSIVE")  # as by a program that holds the file
        for number in (1, 2):
            click(rating, number, [4, 2, 1], 0)
            assert rating.problem.startswith("not kept: database is locked. What was kept before is still there") and (rating.lost, rating.kept) == (number, 0)
        rating._clicked(None, {"back": True, "click": 2}, [])
        assert rating.problem.startswith("not kept")
    assert study.progress().answered.tolist() == [0, 0]
    click(rating, 3, [4, 2, 1], 0)
    assert (rating.problem, rating.kept, rating.place) == ("", 3, 1) and study.progress().answered.tolist() == [1, 0]
    study.folder.rename(study.folder.with_name("moved"))
    click(rating, 4, [4, 2, 1], 0)
    assert rating.problem.startswith("not kept: unable to open database file") and rating.lost == 4


def test_edited_links_are_told_nothing(study):
    for query in ("", "rater=", "rater=abc", f"rater={tokens(study)[0]}x", f"token={tokens(study)[0]}"):
        assert rating_page(study.folder, query).value == "this link is not valid: ask whoever sent it for the whole link"


def test_serving_what_is_no_study_ends_in_one_sentence(tmp_path, capsys):
    assert cli.main(["study", "serve", str(tmp_path)]) == 2
    assert "no study.sqlite" in capsys.readouterr().err


def test_a_port_that_is_taken_and_a_missing_voila_end_in_one_sentence(study, capsys, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert cli.main(["study", "serve", str(study.folder), "--port", str(port)]) == 2
    said = capsys.readouterr()
    assert f"port {port} of 127.0.0.1 cannot be had" in said.err and "rater=" not in said.out  # no link leads elsewhere
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["study", "serve", str(study.folder)]) == 2
    assert "pip install 'neuronbench[study]'" in capsys.readouterr().err


def test_a_raters_process_is_light():
    code = "import sys, neuronbench.widgets.rating; print([name for name in ('torch', 'pandas', 'matplotlib') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


# in the browser

def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def listening(port):
    """Whether something listens there."""
    with socket.socket() as asking:
        return asking.connect_ex(("127.0.0.1", port)) == 0


def wait_for(port, process, seconds=60):
    """Until a port is listened to by a process that has not ended."""
    until = time.monotonic() + seconds
    while not listening(port):
        assert process.poll() is None, "the server ended"
        assert time.monotonic() < until, f"the server did not answer within {seconds} s"
        time.sleep(0.3)


class Served:
    """The study on a loopback port; `kill` ends the server by its id as a power cut would, `start` starts it again at the same address."""

    def __init__(self, folder, **limits):
        self.folder, self.port, self.limits = folder, free_port(), limits

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.server.terminate()
        self.server.wait(30)

    def start(self):
        self.server = serve(self.folder, port=self.port, **self.limits)
        wait_for(self.port, self.server)

    def kill(self):
        self.server.kill()
        self.server.wait(30)


@pytest.fixture
def chromium():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        yield browser
        browser.close()


def visit(chromium, link):
    page, asked = chromium.new_context(viewport={"width": 1000, "height": 900}).new_page(), []
    page.on("request", lambda request: asked.append(request))
    page.set_default_timeout(60_000)
    page.goto(link)
    page.wait_for_selector(".nb-rating .nb-count, .nb-rating .nb-done")
    page.wait_for_load_state("networkidle")
    own = link.partition("?")[0]
    elsewhere = [request for request in asked if not request.url.startswith((own, f"blob:{own}", "data:"))]
    assert len(asked) > 5 and {request.failure for request in elsewhere} <= {"csp"}, [request.url for request in elsewhere]  # nobody else learns of a rater
    return page


def rate_by_keyboard(page, keys="5↓3↓1b", wait_for=None):
    """Press keys on the page; "↓" is the arrow. A digit rates the current description."""
    for name in keys:
        page.keyboard.press({"↓": "ArrowDown", "↑": "ArrowUp", "⏎": "Enter"}.get(name, name))
    if wait_for:
        expect(page.locator(".nb-count")).to_have_text(wait_for)


TWO_VIEWS = """async ([script, traits]) => {
  document.body.innerHTML = '<div id="first"></div><div id="second"></div>';
  for (const el of document.body.children) {
    const { default: widget } = await import(URL.createObjectURL(new Blob([script], { type: 'text/javascript' })));
    widget.render({ el, model: { get: name => traits[name], on() {}, off() {}, send() {} } });
  }
}"""


def test_two_ratings_on_one_page_do_not_share_their_choices(study, chromium):
    rating = Rating(Session(study.folder, tokens(study)[0]))
    page = chromium.new_page()
    shown = ["statement", "count", "place", "texts", "ratings", "best", "kept", "lost", "problem"]
    page.evaluate(TWO_VIEWS, [rating._esm, {**rating.get_state(shown), "sheet": []}])
    first, second = (page.locator(f"#{name} input") for name in ("first", "second"))
    assert first.count() == second.count() == 18
    for chosen in (first.nth(5), first.nth(7), second.nth(11), second.nth(6)):
        chosen.check()
    checked = "inputs => inputs.flatMap((input, i) => (input.checked ? [i] : []))"
    assert [first.evaluate_all(checked), second.evaluate_all(checked)] == [[5, 7], [6, 11]]
    second.nth(11).press("ArrowLeft")  # the best one is chosen among its own three
    assert [first.evaluate_all(checked), second.evaluate_all(checked)] == [[5, 7], [5, 6]]


def test_two_raters_at_once_and_a_server_that_dies(study, chromium, tmp_path):
    with Served(study.folder) as served:
        links = study.links(f"http://127.0.0.1:{served.port}").link.tolist()
        ada, bob = (visit(chromium, link) for link in links)
        alerts = []
        ada.on("dialog", lambda dialog: (alerts.append(dialog.message), dialog.dismiss()))
        shown = ada.locator(".nb-rating tbody th").all_inner_texts()
        assert sorted(shown) == sorted(Session(study.folder, tokens(study)[0]).question(0)["texts"])
        assert any(HOSTILE in text for text in shown) and ada.locator(".nb-rating tbody img").count() == 0 and not alerts
        rate_by_keyboard(ada, "5↓3↓1↑↑b⏎2", "2 of 3")  # the last digit is too early for the second question, and too late for the first
        rate_by_keyboard(bob, "2↓4↓4b⏎", "2 of 3")
        rate_by_keyboard(ada, "↑↑4↓2")
        expect(ada.locator(".nb-status")).to_have_text("saved")
        ada.screenshot(path=tmp_path / "rating.png")
        served.kill()
        rate_by_keyboard(ada, "↓5")
        expect(ada.locator(".nb-status")).to_contain_text("not saved", timeout=15_000)
        assert study.progress().answered.tolist() == [1, 1]
        served.start()
        ada, bob = (visit(chromium, link) for link in links)
        expect(ada.locator(".nb-count")).to_have_text("2 of 3")
        ticked = ada.locator(".nb-rating tbody tr").evaluate_all("rows => rows.map(row => [...row.querySelectorAll('input')].findIndex(input => input.checked) + 1)")
        assert ticked == [4, 2, 0]
        rate_by_keyboard(ada, "↓↓1↑↑b⏎", "3 of 3")
        assert bob.locator(".nb-rating input:checked").count() == 0
        for page in (ada, bob):
            while page.locator(".nb-count").count():
                before = page.locator(".nb-count").inner_text()
                rate_by_keyboard(page, "1↓2↓3b⏎")
                page.wait_for_function("before => document.querySelector('.nb-count')?.innerText !== before", arg=before)
            expect(page.locator(".nb-done")).to_contain_text("Thank you")
    table = study.responses()
    assert study.progress().answered.tolist() == [3, 3] and len(table) == 18 and table.groupby(["rater", "unit"]).best.sum().eq(1).all()
    first = [(row.rating, row.best) for row in table[table.rater == "rater 1"].itertuples()]
    assert sorted(first[:3], reverse=True) == [(5, True), (3, False), (1, False)]


def test_an_edited_link_shows_one_sentence(study, chromium):
    with Served(study.folder) as served:
        page = chromium.new_page()
        page.goto(f"http://127.0.0.1:{served.port}/?rater={tokens(study)[0][:-1]}", timeout=60_000)
        expect(page.locator("body")).to_have_text("this link is not valid: ask whoever sent it for the whole link")
        assert page.locator(".nb-rating").count() == 0 and "Traceback" not in page.content()


def test_the_command_prints_links_that_work_and_ends_its_server(study):
    port = free_port()
    command = [sys.executable, "-c", f"from neuronbench.cli import main; main(['study', 'serve', {str(study.folder)!r}, '--port', '{port}'])"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            links = [process.stdout.readline().split()[-1] for _ in range(2)]
            wait_for(port, process)
            status, page = fetched(links[1])
        finally:
            process.terminate()
    assert status == 200 and "kernelId" in page and [link.partition("?")[0] for link in links] == [f"http://127.0.0.1:{port}/"] * 2
    assert not listening(port)


# without the page

def fetched(address, **headers):
    """(status, text) of an address of the study's server."""
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def sent(kernel_socket, kind, content, channel="shell"):
    """Send a message as Jupyter's own clients do; returns its id."""
    header = {"msg_id": uuid.uuid4().hex, "msg_type": kind, "username": "", "session": uuid.uuid4().hex, "version": "5.3", "date": "2026-01-01T00:00:00Z"}
    kernel_socket.send(json.dumps({"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": channel}))
    return header["msg_id"]


def answered(kernel_socket, message):
    """The types of what comes back for a message, until the kernel is idle or 3 s have passed."""
    kinds, until = [], time.monotonic() + 3
    while time.monotonic() < until:
        try:
            reply = json.loads(kernel_socket.recv())
        except websocket.WebSocketTimeoutException:
            continue
        if reply["parent_header"].get("msg_id") == message:
            kinds.append(reply["msg_type"])
            if reply["content"].get("execution_state") == "idle":
                break
    return kinds


def processes_of(served):
    """The pages' processes."""
    return [one for one in psutil.Process(served.server.pid).children() if any("ipykernel" in part for part in one.cmdline())]


def test_only_a_raters_link_costs_a_process(study):
    with Served(study.folder) as served:
        address = f"http://127.0.0.1:{served.port}/"
        for query in ("", "?rater=", f"?rater={tokens(study)[0][:-1]}", f"?rater=guess&rater={tokens(study)[0]}", "?rater=%00", f"?token={tokens(study)[0]}"):
            assert fetched(address + query)[1].count("this link is not valid: ask whoever sent it for the whole link") == 1, query
        assert fetched(f"{address}favicon.ico")[0] == fetched(f"{address}any/file?rater={tokens(study)[0]}")[0] == 404
        answered = [fetched(f"{address}?rater=guess{number}") for number in range(16)]
        assert {status for status, _ in answered[:13]} == {200} and answered[-1][0] == 429 and "too many wrong links" in answered[-1][1]
        assert not processes_of(served)
        status, page = fetched(f"{address}?rater={tokens(study)[0]}")  # of the same address, perhaps of another rater in the same room
        assert status == 200 and "kernelId" in page and len(processes_of(served)) == 1


def test_a_raters_new_page_takes_the_place_of_the_oldest_and_pages_are_limited(study):
    with Served(study.folder, processes=2) as served:
        links = study.links(f"http://127.0.0.1:{served.port}").link
        for number in range(4):
            status, page = fetched(links[0])
            assert status == 200 and "kernelId" in page and len(processes_of(served)) == min(number + 1, 2)
        status, page = fetched(links[1])
        assert status == 503 and "2 pages of this study are open, and the server has room for no more" in page and len(processes_of(served)) == 2
        with ThreadPoolExecutor(8) as pool:
            assert {status for status, _ in pool.map(fetched, [links[0]] * 8)} <= {200, 429}
        assert len(processes_of(served)) <= 2


def test_the_server_answers_to_its_own_names_only(study):
    with Served(study.folder) as served:
        address = f"127.0.0.1:{served.port}"
        link = f"http://{address}/?rater={tokens(study)[0]}"
        for foreign in ("elsewhere.example", f"elsewhere.example:{served.port}", "127.0.0.1.elsewhere.example", "10.0.0.1"):
            for path in (link, f"http://{address}/voila/static/main.js", f"http://{address}/api/kernels/{uuid.uuid4()}"):
                status, page = fetched(path, Host=foreign)
                assert status == 403 and "does not answer to the name" in page, (foreign, path)
        assert "does not answer to the name 'elsewhere.example': use the link as it was sent" in html.unescape(fetched(link, Host="elsewhere.example")[1])
        assert not processes_of(served)
        status, page = fetched(link, Host=f"localhost:{served.port}")
        kernel = re.search(r'"kernelId": "([0-9a-f-]{36})"', page)[1]
        with pytest.raises(websocket.WebSocketBadStatusException, match="403"):
            websocket.create_connection(f"ws://{address}/api/kernels/{kernel}/channels", timeout=5, host="elsewhere.example", origin="http://elsewhere.example")


@pytest.mark.parametrize("host, address, served, own", [
    ("127.0.0.1:8866", "127.0.0.1", "127.0.0.1", True), ("LOCALHOST", "127.0.0.1", "127.0.0.1", True), ("[::1]:8866", "::1", "::1", True),
    ("192.168.1.7", "::ffff:192.168.1.7", "::", True), ("10.0.0.1", "172.17.0.2", "0.0.0.0", True), ("study.uni.example", "10.0.0.2", "study.uni.example", True),
    (socket.gethostname(), "10.0.0.2", "10.0.0.2", True), ("10.0.0.1", "10.0.0.2", "10.0.0.2", False), ("elsewhere.example", "10.0.0.2", "0.0.0.0", False),
    ("localhost.elsewhere.example", "127.0.0.1", "127.0.0.1", False), ("127.0.0.1.", "127.0.0.1", "127.0.0.1", False), ("", "127.0.0.1", "127.0.0.1", False)])
def test_which_names_are_the_servers_own(host, address, served, own):
    assert is_own_name(host, address, served) is own


def test_wrong_links_are_counted_for_each_address_and_forgotten(monkeypatch):
    now, wrong = [0.0], WrongLinks()
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    assert [wrong.too_many("192.0.2.1") for _ in range(22)] == [False] * 20 + [True] * 2 and not wrong.too_many("192.0.2.2")
    now[0] = 61.0
    assert not wrong.too_many("192.0.2.1") and list(wrong._times) == ["192.0.2.1"]


def test_a_raters_connection_runs_no_code_and_reaches_no_file(study, tmp_path):
    """Whoever has a link has a connection to a process on the server's machine: it must carry clicks and nothing else."""
    with Served(study.folder) as served:
        address = f"127.0.0.1:{served.port}"
        status, page = fetched(f"http://{address}/?rater={tokens(study)[0]}")
        kernel = re.search(r'"kernelId": "([0-9a-f-]{36})"', page)[1]
        assert status == 200 and tokens(study)[1] not in page and "rating_page" not in page
        kernel_socket = websocket.create_connection(f"ws://{address}/api/kernels/{kernel}/channels", timeout=1, origin=f"http://{address}")
        spy = f"open({str(tmp_path / 'spied')!r}, 'w').write('code ran')"
        run = {"code": spy, "silent": False, "store_history": False, "user_expressions": {}, "allow_stdin": False, "stop_on_error": True}
        assert answered(kernel_socket, sent(kernel_socket, "kernel_info_request", {}))  # the connection works
        for channel in ("shell", "control"):
            assert not answered(kernel_socket, sent(kernel_socket, "execute_request", run, channel))
        evaluate = {"type": "request", "seq": 1, "command": "evaluate", "arguments": {"expression": spy, "context": "repl"}}
        assert not answered(kernel_socket, sent(kernel_socket, "debug_request", evaluate, "control"))
        kernel_socket.close()
        assert not (tmp_path / "spied").exists()
        for path in ("api/kernels", "api/contents", "api/sessions", f"voila/files/{FILE}", "voila/files/rating.ipynb", f"voila/files/..%2F..%2F{FILE}", f"voila/static/{FILE}"):
            found = fetched(f"http://{address}/{path}")[1]
            assert "SQLite" not in found and "rating_page" not in found and kernel not in found, path
