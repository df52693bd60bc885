"""A service on the network as an oracle: one POST per design, JSON both ways, and no request it was not told of.

    POST url   Idempotency-Key: <the query's key>   {"design": [1.0, 2.0], "key": "…"}
    200        {"value": 1.5}                        (`oracles.messages` has the other forms of an answer)

Only hosts in `allowed_hosts` are contacted, redirects are not followed, no proxy, cookie or .netrc is used, answers
over `max_bytes` are not read. `http.client` of the standard library is used because its steps are separate: what
fails before the connection stands was not sent, what fails afterwards may have been charged.

    no connection, bad certificate, a secret that is not set        NotAccepted
    301 302 307 308, 401 403 404 405 407 415 429, 503 with Retry-After    NotAccepted: refused before any work
    400, 413, 422; 200 with an answer that cannot be read           the design fails, with what the service said
    202, every other status; a broken connection; `timeout_s`       Unanswered: it may have been charged

A status is no answer to any design when it says 404 or "not now": a wrong address must not teach a campaign that
its designs are bad.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from urllib.parse import SplitResult, parse_qsl, quote, urlsplit

from jaxtyping import Float
from torch import Tensor

from oracles import secrets
from oracles.calls import Answer, Keys, returned
from oracles.errors import NotAccepted, OracleError, Unanswered
from oracles.evaluation import Evaluation
from oracles.messages import answer_of, as_lists, not_finite, parsed

LOOPBACK = ("localhost", "127.0.0.1", "::1")
_OURS = ("host", "content-length", "content-type", "transfer-encoding", "connection", "idempotency-key")
_REFUSALS = {301, 302, 307, 308, 401, 403, 404, 405, 407, 415, 429}
_FAILURES = {400, 413, 422}


@dataclass(frozen=True)
class HttpOracle:
    """Asks a service by HTTP, one request per design."""

    url: str
    allowed_hosts: tuple[str, ...] = LOOPBACK
    """Names of the hosts that may be contacted."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Sent with every request; `${env:NAME}` for secrets."""
    lookup_url: str | None = None
    """Where a GET tells what became of a query, with {key} in it: its answer, or {"unknown": true} for one that never
    arrived. Any other reply leaves the question open; a bare 404 may be a wrong address."""
    timeout_s: float = 600.0
    """Longest time from the request to the end of its answer."""
    connect_timeout_s: float = 10.0
    max_bytes: int = 1_000_000
    """Longest answer that is read."""
    design_shape: tuple[int, ...] | None = None
    is_idempotent: bool = False
    n_per_call: int | None = field(default=1, init=False)

    def __post_init__(self) -> None:
        wrong = _url_faults("url", self.url, self.allowed_hosts, bool(secrets.names(self.headers.values())))
        if self.lookup_url is not None:
            wrong += _url_faults(
                "lookup_url", self.lookup_url.replace("{key}", "k"), self.allowed_hosts, False
            )
            if "{key}" not in self.lookup_url:
                wrong.append(f"lookup_url must have {{key}} where the key goes, got {self.lookup_url!r}")
        wrong += [f"the header {name} is set by bbo itself" for name in self.headers if name.lower() in _OURS]
        wrong += secrets.faults(self.headers)
        for name, value in (("timeout_s", self.timeout_s), ("connect_timeout_s", self.connect_timeout_s)):
            if not 0 < value <= threading.TIMEOUT_MAX:
                wrong.append(f"{name} must be above 0, got {value}")
        if self.max_bytes < 1:
            wrong.append(f"max_bytes must be at least 1, got {self.max_bytes}")
        if wrong:
            raise OracleError("http oracle: " + "; ".join(wrong))
        secrets.check(self.headers, "http oracle")
        if self.lookup_url is not None:
            object.__setattr__(self, "lookup", self._lookup)

    @property
    def name(self) -> str:
        """Host and path of the service."""
        parts = urlsplit(self.url)
        return f"{parts.netloc}{parts.path}"

    def evaluate(self, designs: Float[Tensor, "n *design"]) -> Sequence[Evaluation]:
        """Return one evaluation per design. Raises Incomplete when some have none."""
        return returned(self._answers(designs, None))

    def evaluate_keyed(
        self, designs: Float[Tensor, "n *design"], keys: Sequence[str]
    ) -> Sequence[Evaluation]:
        """Return one evaluation per design; each request carries its key as Idempotency-Key."""
        return returned(self._answers(designs, keys))

    def _answers(self, designs: Float[Tensor, "n *design"], keys: Keys) -> list[Answer]:
        return [self._one(design, None if keys is None else keys[i]) for i, design in enumerate(designs)]

    def _one(self, design: Float[Tensor, "*design"], key: str | None) -> Answer:
        if (fault := not_finite(design)) is not None:  # JSON has no word for it
            return Evaluation.failed(fault)
        body: dict[str, object] = {"design": as_lists(design)}
        extra = {"Content-Type": "application/json"}
        if key is not None:
            body["key"] = key
            extra["Idempotency-Key"] = key
        try:
            response = self._exchange("POST", self.url, extra, json.dumps(body).encode())
        except (NotAccepted, Unanswered) as error:
            return error
        return self._judged(response)

    def _lookup(self, key: str) -> Evaluation | None:
        """Return the service's answer to an earlier query; None when it says that it never got it.

        Raises OracleError (NotAccepted, Unanswered and Incomplete are some) when it does not say.
        """
        if self.lookup_url is None:
            raise OracleError("http oracle: no lookup_url is set")
        url = self.lookup_url.replace("{key}", quote(key, safe=""))
        response = self._exchange("GET", url, {}, None)
        try:
            message = parsed(response.body)
        except ValueError:
            message = None
        if response.status in (200, 404) and isinstance(message, Mapping) and message.get("unknown") is True:
            return None
        if response.status != 200 or not isinstance(message, Mapping):
            said = self._safe(response.body[:200].decode(errors="replace"))
            raise OracleError(
                f"{self.name} does not say what became of {key}: it answered {response.status} {said}"
            )
        (evaluation,) = returned([answer_of(self._safe(message))])
        return evaluation

    def _judged(self, response: _Response) -> Answer:
        said = str(self._safe(response.body[:200].decode(errors="replace")))
        status = f"{self.name} answered {response.status}" + (f": {said}" if said else "")
        if response.status in _REFUSALS or (response.status == 503 and response.retry_after is not None):
            if 300 <= response.status < 400:
                status = (
                    f"{self.name} redirects ({response.status}), which is not followed; set url to its target"
                )
            return NotAccepted(status, _seconds(response.retry_after))
        if response.status in _FAILURES:
            return Evaluation.failed(status)
        if response.status not in (200, 201):
            return Unanswered(f"{status}; it may have been charged")
        if len(response.body) > self.max_bytes:
            return Evaluation.failed(f"{self.name} answered more than max_bytes = {self.max_bytes} bytes")
        try:
            message = parsed(response.body)
        except ValueError:
            return Evaluation.failed(f"{self.name} must answer with JSON, got {said!r}")
        return answer_of(self._safe(message))

    def _exchange(self, method: str, url: str, extra: Mapping[str, str], body: bytes | None) -> _Response:
        """Send one request and return its response. Raises NotAccepted or Unanswered."""
        parts = urlsplit(url)
        headers = {**self._resolved_headers(), **extra, "Connection": "close"}
        with closing(_connection(parts, self.connect_timeout_s)) as connection:
            try:
                connection.connect()
            except (OSError, ValueError, http.client.HTTPException) as error:
                raise NotAccepted(f"cannot connect to {parts.netloc}: {error}") from error
            with _deadline(connection.sock, self.timeout_s) as has_passed:
                try:
                    connection.request(method, _target(parts), body=body, headers=headers)
                    response = connection.getresponse()
                    content = response.read(self.max_bytes + 1)
                    is_whole = len(content) > self.max_bytes or not (response.length or has_passed.is_set())
                except (OSError, ValueError, http.client.HTTPException) as error:
                    raise self._unanswered(has_passed.is_set(), f"{type(error).__name__}: {error}") from error
            if not is_whole:
                raise self._unanswered(has_passed.is_set(), "the answer was cut short")
        return _Response(response.status, content, response.headers.get("Retry-After"))

    def _unanswered(self, is_late: bool, fault: str) -> Unanswered:
        why = (
            f"gave no whole answer within {self.timeout_s:g} s"
            if is_late
            else f"broke off: {self._safe(fault)}"
        )
        return Unanswered(f"{self.name} {why}; it may have been charged")

    def _resolved_headers(self) -> dict[str, str]:
        headers = {name: secrets.resolved(text) for name, text in self.headers.items()}
        for name, value in headers.items():
            if not (value.isascii() and value.isprintable()):  # the value itself is not to be shown
                raise NotAccepted(f"the value of the header {name} has characters that no header can have")
        return headers

    def _safe(self, said: object) -> object:
        return secrets.redacted(said, self.headers.values())


@dataclass(frozen=True)
class _Response:
    status: int
    body: bytes
    """At most max_bytes + 1 of it."""
    retry_after: str | None


def _connection(parts: SplitResult, timeout_s: float) -> http.client.HTTPConnection:
    host = parts.hostname or ""
    if parts.scheme == "https":
        context = ssl.create_default_context()
        return http.client.HTTPSConnection(host, parts.port, timeout=timeout_s, context=context)
    return http.client.HTTPConnection(host, parts.port, timeout=timeout_s)


@contextmanager
def _deadline(sock: socket.socket, seconds: float) -> Iterator[threading.Event]:
    """Break the connection after so many seconds, however slowly bytes drip in; the event tells that it was."""
    has_passed = threading.Event()

    def cut() -> None:
        has_passed.set()
        try:
            socket.socket.shutdown(
                sock, socket.SHUT_RDWR
            )  # that of the plain socket: TLS would wait for a reply
        except OSError:
            return  # it has gone already

    sock.settimeout(None)  # the socket's own limit is one for each byte
    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield has_passed
    finally:
        timer.cancel()


def _target(parts: SplitResult) -> str:
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _url_faults(name: str, url: str, allowed_hosts: Sequence[str], has_secrets: bool) -> list[str]:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        return [f"{name} {url!r} is no address: {error}"]
    if parts.scheme not in ("http", "https") or not host:
        return [f"{name} must be an address such as https://lab.example/evaluate, got {url!r}"]
    wrong = []
    if parts.username is not None or parts.password is not None:
        wrong.append(f"{name} must hold no name or password; send them as a header with ${{env:NAME}}")
    if any(secrets.is_secret(key) for key, _ in parse_qsl(parts.query)):
        wrong.append(
            f"{name} holds a secret, which would be recorded; send it as a header with ${{env:NAME}}"
        )
    if not url.isascii() or not url.isprintable() or " " in url:
        wrong.append(f"{name} must be written in ASCII without spaces, got {url!r}")
    if host not in [allowed.lower() for allowed in allowed_hosts]:
        wrong.append(
            f"{name} is on {host}, which is not in allowed_hosts ({', '.join(allowed_hosts) or 'none'})"
        )
    if parts.scheme == "http" and has_secrets and host not in LOOPBACK:
        wrong.append(f"secrets would go to {host} unencrypted; use https")
    return wrong


def _seconds(retry_after: str | None) -> float:
    """Return a Retry-After as seconds; 0 for none, or for a date."""
    return float(retry_after) if retry_after is not None and retry_after.strip().isdecimal() else 0.0
