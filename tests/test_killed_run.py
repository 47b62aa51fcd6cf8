"""A description run that is killed in the middle: no answer that a server gave is paid for twice."""
import hashlib
import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread

import pytest

CONCURRENCY = 3  # as in the run
WORDS = ("red", "round", "wheel", "boat", "night", "leaf", "snow", "window", "sail", "door")


class Counting(BaseHTTPRequestHandler):
    """Answers each body with three words made of it, and counts the bodies; at the count of `server.kill_at` it kills the process of `server.run`."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        length = int(self.headers["Content-Length"])
        body = self.rfile.read(length)
        if len(body) < length:  # the kill came while it was being sent
            self.close_connection = True
            return
        with self.server.lock:
            self.server.bodies.append(body)
            if len(self.server.bodies) == self.server.kill_at:
                self.server.run.kill()
        digest = hashlib.sha256(body).digest()
        message = {"role": "assistant", "content": " ".join(WORDS[byte % len(WORDS)] for byte in digest[:3])}
        answer = json.dumps({"id": "1", "object": "chat.completion", "created": 0, "model": "tiny", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                             "usage": {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4}}).encode()
        try:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)
        except OSError:  # nobody is there any more
            self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Counting)
    server.daemon_threads, server.lock, server.bodies, server.kill_at = True, Lock(), [], None
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def run(server, cache, kill_at=None):
    """(return code, descriptions) of a run with this cache, killed when the server has got so many requests in all."""
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("killed_run.py")), f"http://127.0.0.1:{server.server_port}/v1"]
    with server.lock:
        server.kill_at = kill_at
        server.run = subprocess.Popen(command, env={**os.environ, "NEURONBENCH_CACHE": str(cache)}, stdout=subprocess.PIPE, text=True)
    try:
        out = server.run.communicate(timeout=300)[0]
    finally:
        server.run.kill()
        server.run.wait()
    return server.run.returncode, json.loads(out) if out else None


def test_a_killed_run_pays_for_no_answer_twice(server, tmp_path):
    code, expected = run(server, tmp_path / "whole")
    distinct = set(server.bodies)
    assert code == 0 and len(expected) == 6 and None not in expected and len(server.bodies) == len(distinct) > 40
    server.bodies.clear()
    kills = 0
    for more in (3, 25):  # among the captions, and among the answers of the later steps
        code, _ = run(server, tmp_path / "killed", len(server.bodies) + more)
        kills += code != 0
    assert kills == 2
    assert run(server, tmp_path / "killed") == (0, expected)
    assert set(server.bodies) == distinct and len(server.bodies) <= len(distinct) + kills * CONCURRENCY
    before = len(server.bodies)
    assert run(server, tmp_path / "killed") == (0, expected) and len(server.bodies) == before  # all of it is kept
