"""Whether a server is there: answers, refusals, silence, and no question on the terminal."""

import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from llama_adapter import wandb_server
from llama_adapter.wandb_server import first_line, unreachable, without_terminal


@pytest.fixture
def server(request) -> Iterator[str]:
    """The address of a server that answers with the status `request.param`; None for one that never does."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if request.param is None:
                time.sleep(30)
            self.send_response(request.param)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads, running.block_on_close = True, False
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


@pytest.mark.parametrize("server", [200, 401, 404, 500], indirect=True)
def test_any_answer_is_one(server):
    assert unreachable(server) == ""


@pytest.mark.parametrize("server", [None], indirect=True)
def test_silence(server, monkeypatch):
    monkeypatch.setattr(wandb_server, "PROBE_SECONDS", 0.3)
    assert unreachable(server) == f"{server} cannot be reached: timed out"


def closed_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


def test_nobody_there():
    url = f"http://127.0.0.1:{closed_port()}"
    assert re.fullmatch(rf"{url} cannot be reached: \[Errno \d+\] Connection refused", unreachable(url))


def test_no_address():
    assert unreachable("w&b") == "w&b cannot be reached: unknown url type: 'w&b'"


def test_looking_up_a_name_may_take_for_ever(monkeypatch):
    monkeypatch.setattr(wandb_server, "PROBE_SECONDS", 0.1)
    monkeypatch.setattr(wandb_server, "_ask", lambda url: time.sleep(30))
    start = time.perf_counter()
    assert unreachable("https://api.example") == "https://api.example has not answered within 0.1 seconds"
    assert time.perf_counter() - start < 5


def test_certificates_are_not_judged(monkeypatch):
    import ssl
    import urllib.request
    from urllib.error import URLError

    def refuse(*args: object, **kwargs: object) -> None:
        raise URLError(ssl.SSLCertVerificationError("self-signed"))

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    assert unreachable("https://wandb.our-company.example") == ""


def test_no_terminal_within(monkeypatch):
    class Terminal:
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", terminal := Terminal())
    with pytest.raises(OSError, match="x"), without_terminal():
        assert not sys.stdin.isatty()
        raise OSError("x")
    assert sys.stdin is terminal


def test_first_line():
    assert first_line(ValueError("No key.\nLog in.")) == "No key"
    assert first_line(TimeoutError()) == "TimeoutError"
