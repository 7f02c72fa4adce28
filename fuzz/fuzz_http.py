"""Heads and bodies of HTTP requests, as raw bytes to a server of its own; see `entry`.

Whatever comes, the server replies with a status that is meant, or closes the connection; it logs no
traceback, and answers the next client.
"""

from entry import fuzz, instrumented

with instrumented("tasks.serving", "uvicorn.protocols.http", "h11", "starlette"):
    from live_service import BODY, JSON, MEANT, ask, post, require_answer, start, statuses

SEEDS = [
    b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n",
    b"GET /health HTTP/1.0\r\n\r\nGET /metrics HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    b"HEAD /%2e%2e/page/index.html?a=b HTTP/1.1\r\nhost: 127.0.0.1\r\nif-none-match: *\r\n\r\n",
    post(BODY),
    post(b'{"puzzles": ["1234341221.343.1", "12"]}'),
    post(b'{"puzzle": "1234341221.343.1", "starts": 2, "attempts": 0, "candidates": true}')
    + b"GET /about HTTP/1.1\r\nhost: localhost\r\n\r\nGET /docs HTTP/1.1\r\nhost: a\r\n\r\n",
    b"POST /trajectory HTTP/1.1\r\n" + JSON + b"transfer-encoding: chunked\r\n\r\n1e\r\n" + BODY
    + b"\r\n0\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
    b"sec-websocket-key: x\r\nsec-websocket-version: 13\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nhost: 127.0.0.1\r\nrange: bytes=0-1,5-\r\nexpect: 100-continue\r\n\r\n",
]  # fmt: skip


def one_input(data: bytes) -> None:
    """One connection; now and then a good question after it."""
    reply = ask(PORT, data, 0.03)
    found = statuses(reply)
    if ERRORS.seen or not MEANT.issuperset(found) or (reply and not found):
        raise AssertionError(f"{reply[:200]!r}, logged {ERRORS.seen}")
    if sum(data) % 64 == 0:
        require_answer(PORT)


if __name__ == "__main__":
    PORT, ERRORS = start()
    fuzz(one_input, "http", SEEDS)
