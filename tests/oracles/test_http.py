"""The HTTP oracle against a real service: what is sent, what an ending means, and what is never contacted."""

import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch

from bbo.config.describe import describe_oracle
from oracles import secrets
from oracles.base import Keyed, Lookup
from oracles.calls import Incomplete, call
from oracles.errors import NotAccepted, OracleError, Unanswered
from oracles.evaluation import Evaluation
from oracles.http import HttpOracle
from tests.contracts.oracle_contract import OracleContract
from tests.oracles.conftest import drip, send

DESIGNS = torch.tensor([[1.0, 2.0], [3.0, 0.5], [0.0, 1.0]])
ONE = DESIGNS[:1]


def closed_port():
    """Return a port of this machine on which nobody listens."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class TestContract(OracleContract):
    @pytest.fixture
    def oracle(self, service):
        return HttpOracle(service.url, is_idempotent=True)

    @pytest.fixture
    def designs(self):
        return DESIGNS


def test_a_request_carries_the_design_and_its_key(service):
    oracle = HttpOracle(service.url)
    assert isinstance(oracle, Keyed)
    answers = oracle.evaluate_keyed(DESIGNS[:2], ["q-1", "q-2"])
    assert [e.outcomes["value"] for e in answers] == [-5.0, -9.25]
    (method, path, headers, body), second = service.seen
    assert (method, path, body) == ("POST", "/evaluate", {"design": [1.0, 2.0], "key": "q-1"})
    assert headers["Idempotency-Key"] == "q-1"
    assert headers["Content-Type"] == "application/json"
    assert second[2]["Idempotency-Key"] == "q-2"


def test_without_a_key_none_is_made_up(service):
    HttpOracle(service.url).evaluate(ONE)
    assert "Idempotency-Key" not in service.seen[0][2]
    assert service.seen[0][3] == {"design": [1.0, 2.0]}


def test_everything_an_answer_may_hold_arrives(service):
    said = {"outcomes": {"lift": 1.5, "drag": 0.1}, "noise_std": {"lift": 0.2}, "cost": 3.5, "plate": "B7"}
    service.behave = lambda handler, body: send(handler, 200, said)
    (evaluation,) = HttpOracle(service.url).evaluate(ONE)
    assert evaluation == Evaluation({"lift": 1.5, "drag": 0.1}, None, {"lift": 0.2}, 3.5, {"plate": "B7"})


# ------------------------------------------------------------------- what an ending means
def test_a_refused_connection_was_not_accepted():
    with pytest.raises(Incomplete) as refused:
        HttpOracle(f"http://127.0.0.1:{closed_port()}/").evaluate(DESIGNS)
    assert [type(a) for a in refused.value.answers] == [NotAccepted] * 3
    assert "Connection refused" in str(refused.value)


@pytest.mark.parametrize(
    ("status", "headers", "kind"),
    [
        (301, {"Location": "/other"}, NotAccepted),
        (302, {"Location": "/other"}, NotAccepted),
        (307, {"Location": "/other"}, NotAccepted),
        (308, {"Location": "/other"}, NotAccepted),
        (303, {"Location": "/other"}, Unanswered),
        (401, {}, NotAccepted),
        (404, {}, NotAccepted),
        (429, {}, NotAccepted),
        (503, {"Retry_After": "3"}, NotAccepted),
        (503, {}, Unanswered),
        (202, {}, Unanswered),
        (204, {}, Unanswered),
        (409, {}, Unanswered),
        (500, {}, Unanswered),
        (502, {}, Unanswered),
        (504, {}, Unanswered),
        (400, {}, Evaluation),
        (422, {}, Evaluation),
    ],
)
def test_what_a_status_means(service, status, headers, kind):
    service.behave = lambda handler, body: send(
        handler, status, b"" if status == 204 else b"sorry", **headers
    )
    (answer,) = call(HttpOracle(service.url), ONE)
    assert type(answer) is kind
    said = answer.error if kind is Evaluation else str(answer)
    assert str(status) in said
    assert len(service.seen) == 1  # no redirect was followed, nothing was repeated
    if status == 503 and headers:
        assert answer.retry_after_s == 3.0


def test_a_service_that_is_late_may_have_charged(service):
    service.behave = lambda handler, body: time.sleep(1)
    began = time.monotonic()
    (answer,) = call(HttpOracle(service.url, timeout_s=0.2), ONE)
    assert time.monotonic() - began < 0.8
    assert isinstance(answer, Unanswered)
    assert "no whole answer within 0.2 s" in str(answer)


def test_a_drip_of_bytes_does_not_hold_the_limit_up(service):
    service.behave = lambda handler, body: drip(handler, seconds=2)
    began = time.monotonic()
    (answer,) = call(HttpOracle(service.url, timeout_s=0.3), ONE)
    assert time.monotonic() - began < 1.0
    assert isinstance(answer, Unanswered)


def dripping_header(handler, body):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for _ in range(40):
        handler.wfile.write(b"X")
        handler.wfile.flush()
        time.sleep(0.05)


@pytest.mark.parametrize(
    "behave",
    [
        lambda handler, body: handler.connection.close(),
        lambda handler, body: handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"),
        lambda handler, body: handler.wfile.write(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"
        ),
        lambda handler, body: handler.wfile.write(b"rubbish\r\n\r\n"),
        dripping_header,
    ],
)
def test_an_answer_that_breaks_off_may_have_been_charged(service, behave):
    def then_hang_up(handler, body):
        handler.close_connection = True
        behave(handler, body)

    service.behave = then_hang_up
    (answer,) = call(HttpOracle(service.url, timeout_s=0.5), ONE)
    assert isinstance(answer, Unanswered)
    assert "may have been charged" in str(answer)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"<html>hello</html>", "must answer with JSON"),
        (b"[" * 100_000, "must answer with JSON"),
        (b"3.5", "expected an answer such as"),
        (b"{}", "exactly one of"),
        (b'{"value": 1, "error": "x"}', "exactly one of"),
        (b'{"value": NaN}', "not a finite number"),
        (b'{"value": "12"}', "not a finite number"),
        (b'{"value": 1e999}', "not a finite number"),
        (b'{"outcomes": 3}', "outcomes must be numbers by name"),
        (b'{"error": "does not fit"}', "does not fit"),
    ],
)
def test_an_answer_that_holds_no_outcome_fails_the_design(service, body, said):
    service.behave = lambda handler, _: send(handler, 200, body)
    (answer,) = HttpOracle(service.url).evaluate(ONE)
    assert said in answer.error


def test_the_length_of_an_answer_is_bounded(service):
    service.behave = lambda handler, body: send(
        handler, 200, b'{"value": 1, "padding": "' + b"x" * 5000 + b'"}'
    )
    (answer,) = HttpOracle(service.url, max_bytes=1000).evaluate(ONE)
    assert "more than max_bytes = 1000" in answer.error
    (answer,) = HttpOracle(service.url, max_bytes=6000).evaluate(ONE)
    assert answer.outcomes == {"value": 1.0}


def test_an_endless_answer_is_not_read_to_its_end(service):
    def flood(handler, body):
        handler.send_response(200)
        handler.send_header("Content-Length", str(10**12))
        handler.end_headers()
        while True:
            handler.wfile.write(b"x" * 100_000)

    service.behave = flood
    began = time.monotonic()
    (answer,) = call(HttpOracle(service.url, timeout_s=10.0, max_bytes=1_000_000), ONE)
    assert time.monotonic() - began < 5
    assert "more than max_bytes" in answer.error


def test_what_was_answered_is_kept_when_another_design_gets_no_answer(service):
    def behave(handler, body):
        if body["design"][0] == 3.0:
            handler.close_connection = True
            handler.connection.close()
        else:
            send(handler, 200, {"value": body["design"][0]})

    service.behave = behave
    with pytest.raises(Incomplete) as incomplete:
        HttpOracle(service.url).evaluate(DESIGNS)
    first, second, third = incomplete.value.answers
    assert (first.outcomes, third.outcomes) == ({"value": 1.0}, {"value": 0.0})
    assert isinstance(second, Unanswered)


# ------------------------------------------------------------------- lookup
def test_lookup_is_offered_where_it_is_set(service):
    assert not isinstance(HttpOracle(service.url), Lookup)
    oracle = HttpOracle(service.url, lookup_url=service.url.replace("evaluate", "q/{key}?a=1"))
    assert isinstance(oracle, Lookup)
    told = {"/q/done?a=1": (200, {"value": 2.0}), "/q/a%2F..%2Fb?a=1": (200, {"error": "broke"})}
    service.behave = lambda handler, body: send(handler, *told.get(handler.path, (404, {"unknown": True})))
    assert oracle.lookup("done").outcomes == {"value": 2.0}
    assert oracle.lookup("a/../b").error == "broke"
    assert oracle.lookup("never") is None
    assert {method for method, *_ in service.seen} == {"GET"}


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, b"no such page"),
        (404, b"{}"),
        (202, b'{"unknown": true}'),
        (200, b"soup"),
        (400, b'{"error": "bad key"}'),
        (500, b'{"value": 1}'),
        (200, b'{"unanswered": "still at work"}'),
    ],
)
def test_a_lookup_that_says_nothing_leaves_the_query_in_doubt(service, status, body):
    """None would have the query sent, and perhaps charged, again."""
    oracle = HttpOracle(service.url, lookup_url=service.url + "/{key}")
    service.behave = lambda handler, _: send(handler, status, body)
    with pytest.raises(OracleError):
        oracle.lookup("q")


def test_a_lookup_out_of_reach_leaves_the_query_in_doubt(service):
    oracle = HttpOracle(service.url, lookup_url=f"http://127.0.0.1:{closed_port()}/{{key}}")
    with pytest.raises(NotAccepted):
        oracle.lookup("q")


# ------------------------------------------------------------------- hosts and secrets
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"url": "http://lab.example/x"}, "lab.example, which is not in allowed_hosts (localhost, 127.0.0.1"),
        ({"url": "http://127.0.0.1.evil.example/"}, "not in allowed_hosts"),
        ({"url": "http://127.0.0.1@evil.example/"}, "no name or password"),
        ({"url": "http://localhost/?a=1&api_key=abc"}, "url holds a secret"),
        ({"url": "file:///etc/passwd"}, "must be an address"),
        ({"url": "http://"}, "must be an address"),
        ({"url": "http://localhost:x/"}, "is no address"),
        ({"url": "http://localhost/a b"}, "without spaces"),
        (
            {"url": "http://localhost/", "lookup_url": "http://evil.example/{key}"},
            "lookup_url is on evil.example",
        ),
        ({"url": "http://localhost/", "lookup_url": "http://localhost/"}, "must have {key}"),
        ({"url": "http://localhost/", "timeout_s": 0.0}, "timeout_s must be above 0, got 0.0"),
        ({"url": "http://localhost/", "max_bytes": 0}, "max_bytes must be at least 1, got 0"),
        ({"url": "http://localhost/", "headers": {"Idempotency-Key": "x"}}, "is set by bbo itself"),
        (
            {"url": "http://localhost/", "headers": {"X": "${LAB_TOKEN}"}},
            "as ${env:NAME}, got '${LAB_TOKEN}'",
        ),
        (
            {"url": "http://localhost/", "headers": {"X": "${env:NOT_SET}"}},
            "set the environment variable NOT_SET",
        ),
        (
            {
                "url": "http://lab.example/",
                "allowed_hosts": ("lab.example",),
                "headers": {"X": "${env:TOKEN}"},
            },
            "unencrypted; use https",
        ),
    ],
)
def test_settings_that_are_refused(settings, said):
    with pytest.raises(OracleError) as refused:
        HttpOracle(**settings)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("name", "is_secret"),
    [
        ("Authorization", True),
        ("X-Api-Key", True),
        ("OPENAI_API_KEY", True),
        ("AWS_SECRET_ACCESS_KEY", True),
        ("apitoken", True),
        ("DB_PASSWORD", True),
        ("Cookie", True),
        ("TOKENIZERS_PARALLELISM", False),
        ("KEYBOARD", False),
        ("Accept", False),
        ("OMP_NUM_THREADS", False),
    ],
)
def test_which_names_stand_for_secrets(name, is_secret):
    assert secrets.is_secret(name) is is_secret


def test_a_written_out_secret_is_refused_and_not_repeated():
    with pytest.raises(OracleError) as refused:
        HttpOracle("http://localhost/", headers={"Authorization": "Bearer abc123"})
    assert "${env:NAME}" in str(refused.value)
    assert "abc123" not in str(refused.value)


def test_a_secret_is_sent_and_neither_recorded_nor_repeated(service, monkeypatch):
    monkeypatch.setenv("LAB_TOKEN", "s3cret")
    oracle = HttpOracle(service.url, headers={"Authorization": "Bearer ${env:LAB_TOKEN}"})
    echo = lambda handler, body: send(handler, 200, {"value": 1, "you": handler.headers["Authorization"]})  # noqa: E731
    service.behave = echo
    (evaluation,) = oracle.evaluate(ONE)
    assert service.seen[0][2]["Authorization"] == "Bearer s3cret"
    assert evaluation.metadata == {"you": "Bearer ${env:LAB_TOKEN}"}
    service.behave = lambda handler, body: send(handler, 500, b"bad token s3cret")
    (answer,) = call(oracle, ONE)
    assert "bad token ${env:LAB_TOKEN}" in str(answer)
    service.behave = lambda handler, body: handler.wfile.write(b"s3cret is no status\r\n\r\n")
    (answer,) = call(oracle, ONE)
    assert isinstance(answer, Unanswered)
    told = json.dumps(describe_oracle(oracle)) + repr(oracle) + oracle.name + str(answer)
    assert "Bearer ${env:LAB_TOKEN}" in told
    assert "s3cret" not in told


@pytest.mark.parametrize("value", ["with\r\nbreak", "schlüssel"])
def test_a_secret_that_no_header_can_hold_is_not_sent_and_not_shown(service, monkeypatch, value):
    monkeypatch.setenv("LAB_TOKEN", value)
    (answer,) = call(HttpOracle(service.url, headers={"X-Api-Key": "${env:LAB_TOKEN}"}), ONE)
    assert isinstance(answer, NotAccepted)
    assert value not in str(answer)
    assert service.seen == []


def test_a_secret_that_was_unset_meanwhile_stops_the_request(service, monkeypatch):
    monkeypatch.setenv("LAB_TOKEN", "x")
    oracle = HttpOracle(service.url, headers={"X-Api-Key": "${env:LAB_TOKEN}"})
    monkeypatch.delenv("LAB_TOKEN")
    (answer,) = call(oracle, ONE)
    assert isinstance(answer, NotAccepted)
    assert "LAB_TOKEN is not set" in str(answer)
    assert service.seen == []


def test_no_proxy_is_used(service, monkeypatch):
    requests = []

    class Proxy(BaseHTTPRequestHandler):
        def do_POST(self):
            requests.append(self.path)

    proxy = HTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.server_port}")
    assert HttpOracle(service.url).evaluate(ONE)[0].outcomes == {"value": -5.0}
    assert requests == []
    proxy.shutdown()
    proxy.server_close()


def test_a_certificate_that_nobody_signed_is_not_accepted(service):
    (answer,) = call(HttpOracle(service.url.replace("http:", "https:")), ONE)  # speaks no TLS at all
    assert isinstance(answer, NotAccepted)
    assert service.seen == []
