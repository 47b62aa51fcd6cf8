"""A loopback HTTP proxy that passes requests on to a server, or does to them what servers and networks do on bad days.

    with FaultProxy(upstream) as proxy:
        proxy.faults = [status(429), reset]     # the next two requests; those after them are passed on
        Chat("model", base_url=proxy.url)
"""
import http.client
import json
import socket
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


class FaultProxy:
    """`faults` are functions of the handler, one for each coming request; `always` is done to all after them; None passes on to `upstream`.

    `requests` are the bodies that arrived, `headers` theirs, `times` when; `most_at_once` counts those in flight together.
    """

    def __init__(self, upstream=None, always=None):
        self.upstream, self.always, self.faults = upstream, always, []
        self.requests, self.headers, self.times = [], [], []
        self.in_flight, self.most_at_once, self.lock = 0, 0, threading.Lock()
        self.closing = threading.Event()

    def __enter__(self):
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                fault = proxy.arrive(json.loads(body), self.headers)
                try:
                    (fault or forward)(Exchange(self, proxy, body))
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True  # the client went away, as it does after a timeout
                finally:
                    proxy.leave()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    def arrive(self, body, headers):
        with self.lock:
            self.requests.append(body)
            self.headers.append(headers)
            self.times.append(time.monotonic())
            self.in_flight += 1
            self.most_at_once = max(self.most_at_once, self.in_flight)
            return self.faults.pop(0) if self.faults else self.always

    def leave(self):
        with self.lock:
            self.in_flight -= 1


class Exchange:
    """One request and the way to answer it."""

    def __init__(self, handler, proxy, body):
        self.handler, self.proxy, self.body = handler, proxy, body

    def reply(self, body, status=200, content_type="application/json", **headers):
        content = body if isinstance(body, bytes) else body.encode()
        self.handler.send_response(status)
        for name, value in {"Content-Type": content_type, "Content-Length": str(len(content)), **headers}.items():
            self.handler.send_header(name.replace("_", "-"), value)
        self.handler.end_headers()
        self.handler.wfile.write(content)


def forward(exchange):
    address = urlsplit(exchange.proxy.upstream)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=120)
    connection.request("POST", exchange.handler.path, exchange.body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    exchange.reply(response.read(), response.status, response.headers["Content-Type"])
    connection.close()


def status(code, body='{"error": {"message": "not now"}}', **headers):
    return lambda exchange: exchange.reply(body, code, **headers)


def reset(exchange):
    """The connection ends with a TCP reset instead of an answer."""
    exchange.handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    exchange.handler.connection.close()
    exchange.handler.close_connection = True


def cut_off(exchange):
    """The connection ends in the middle of the body."""
    exchange.handler.send_response(200)
    exchange.handler.send_header("Content-Length", "1000")
    exchange.handler.end_headers()
    exchange.handler.wfile.write(b'{"choices": [')
    exchange.handler.close_connection = True


def hang(exchange):
    """No answer, until the test is over."""
    exchange.proxy.closing.wait(60)
    exchange.handler.close_connection = True


def trickle(exchange):
    """A body that begins and never ends, a space at a time, as gateways do to keep a connection open."""
    exchange.handler.send_response(200)
    exchange.handler.send_header("Content-Length", "1000000")
    exchange.handler.end_headers()
    while not exchange.proxy.closing.wait(0.05):
        exchange.handler.wfile.write(b" ")


def text(body):
    """A body of the test's own, with status 200."""
    return lambda exchange: exchange.reply(body)


def completion(content, reason="stop", usage=None, **message):
    """A whole chat completion."""
    answer = {"choices": [{"index": 0, "message": {"role": "assistant", "content": content, **message}, "finish_reason": reason}]}
    return text(json.dumps(answer | ({"usage": usage} if usage else {})))
