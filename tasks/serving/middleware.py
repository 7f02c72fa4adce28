"""ASGI middleware: limits on the host, size, time and rate of requests, and safe headers."""

import asyncio
import collections
import ipaddress
import math
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.responses import JSONResponse

MAX_BODY = 16_384  # bytes; a maze of 30 x 30 cells takes one thousand
BODY_SECONDS = 5.0  # in which a body must have arrived
RATED = "/openapi.json"  # may be read at the rate of the puzzles only
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class LimitsMiddleware:
    """ASGI middleware that refuses requests beyond the limits, and adds headers to all replies.

    A request may be too large, too slow or too frequent, or come while the service ends. The whole
    body is read before the application is called, so that no route ever waits for it.

    Args:
        app: The application.
        service: The `app.Service`, which lies above: has the limits `rates` and `hosts`, says
            whether it is `draining`, and counts requests in `in_flight` and in `metrics`.
    """

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], service: Any):
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or let the application answer it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        service, began = self.service, time.monotonic()

        async def labelled(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                extra = [(k.encode(), v.encode()) for k, v in HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *extra]
                seconds = time.monotonic() - began
                service.metrics.count(scope["path"], message["status"], seconds)
            await send(message)

        service.in_flight += 1
        try:
            refusal = self._refusal(scope)
            if refusal is None:
                body = await _body(receive)
                if isinstance(body, bytes):
                    await self.app(scope, _replay(body, receive), labelled)
                    return
                refusal = body
            await refusal(scope, receive, labelled)
        finally:
            service.in_flight -= 1

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        """The refusal of a request that its head calls for, if any."""
        headers, hosts = dict(scope["headers"]), self.service.hosts
        host = headers.get(b"host", b"localhost").decode("latin-1")
        if hosts is not None and re.sub(r":\d*$", "", host).lower() not in hosts:
            names = ", ".join(sorted(hosts))
            sentence = f"The host {host[:80]!a} is not served here: ask for {names}. "
            return _error(421, sentence + "With `--host 0.0.0.0` the service takes any host.")
        if scope["method"] in ("GET", "HEAD") and scope["path"] != RATED:
            return None
        if self.service.draining:
            return _error(503, "The service is about to end. Ask another one.", retry=1)
        address = client_of((scope.get("client") or ("",))[0])
        wait = self.service.rates.wait(address, time.monotonic())
        if wait:
            sentence = f"Too many requests from your address: wait {wait:.1f} seconds."
            return _error(429, sentence, retry=math.ceil(wait))
        length = headers.get(b"content-length", b"0")
        return _too_large() if length.isdigit() and int(length[:20]) > MAX_BODY else None


async def _body(receive: Receive) -> bytes | JSONResponse:
    """The body of a request, or the reply that refuses it."""
    body, more = b"", True
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return _error(499, "The client has left.")  # nginx's number, for the metrics
                body += message.get("body", b"")
                more = message.get("more_body", False)
                if len(body) > MAX_BODY:
                    return _too_large()
    except TimeoutError:
        return _error(408, f"The body did not arrive within {BODY_SECONDS:g} seconds.")
    return body


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` function that returns a body that was already read."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> MutableMapping[str, Any]:
        return waiting.pop() if waiting else await receive()

    return again


def _too_large() -> JSONResponse:
    return _error(413, f"A request may have {MAX_BODY} bytes.")


def _error(status: int, sentence: str, retry: int | None = None) -> JSONResponse:
    # What is left of a refused body must not be taken for the next request.
    headers = {"connection": "close"} if status in (408, 413) else {}
    return JSONResponse(
        {"error": sentence}, status, headers | ({"retry-after": str(retry)} if retry else {})
    )


def client_of(address: str) -> str:
    """What stands for a client: its address, or its /64 of IPv6, all of which it may use."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv4Address):
        return address
    return str(ip.ipv4_mapped or ipaddress.IPv6Network((int(ip), 64), strict=False))


class Rates:
    """Limits the rate of requests from each address by a token bucket.

    Args:
        rate: Tokens a second, one for a request and one for each further solve of it; a full bucket
            holds twice as many, at least one.
        clients: Addresses to remember. If there are more, the least recent one is forgotten.
    """

    def __init__(self, rate: float, clients: int = 10_000):
        self.rate, self.size, self.clients = rate, max(2 * rate, 1.0), clients
        self.buckets: collections.OrderedDict[str, tuple[float, float]] = collections.OrderedDict()

    def wait(self, address: str, now: float) -> float:
        """Take a token and return 0; if there is none, return the seconds until there is one."""
        tokens, then = self.buckets.pop(address, (self.size, now))
        tokens = min(self.size, tokens + (now - then) * self.rate)
        enough = tokens >= 1
        self.buckets[address] = (tokens - 1 if enough else tokens, now)
        if len(self.buckets) > self.clients:
            self.buckets.popitem(last=False)
        return 0.0 if enough else (1 - tokens) / self.rate

    def charge(self, address: str, tokens: int, now: float) -> None:
        """Take further tokens from an address, which waits until the debt is paid."""
        left, then = self.buckets.get(address, (self.size, now))
        self.buckets[address] = (left - tokens, then)
