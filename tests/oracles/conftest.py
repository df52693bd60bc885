"""A service on this machine to ask, which does what a test tells it to."""

import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


@dataclass
class Service:
    """Answers the negative sum of squares of a design, or what `behave` says; keeps every request."""

    url: str = ""
    behave: object = None
    """A function of (handler, body) that sends another answer; None for the usual one."""
    seen: list = field(default_factory=list)
    """(method, path, headers, body) of each request."""


def send(handler, status, body, **headers):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(raw)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(raw)


def drip(handler, seconds, pause=0.05):
    """Send one byte of an endless answer now and then."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(pause)


@pytest.fixture
def service():
    told = Service()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _handle(self):
            raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = json.loads(raw) if raw else None
            told.seen.append((self.command, self.path, dict(self.headers), body))
            try:
                if told.behave is not None:
                    told.behave(self, body)
                else:
                    send(self, 200, {"value": -sum(x * x for x in body["design"])})
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        do_GET = do_POST = _handle

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    told.url = f"http://127.0.0.1:{server.server_port}/evaluate"
    yield told
    server.shutdown()
    server.server_close()
