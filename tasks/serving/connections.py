"""Connections of clients: for how long, and how many at a time, the server waits for them.

A connection costs a file of the process, and a client that says nothing may hold it. So whoever has
the next word and does not say it in time is closed, and so is the idlest one where a new connection
finds no room.
"""

import asyncio
import collections
import json
import logging
import os
import time
from typing import cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from tasks.serving.middleware import client_of

try:
    import resource
except ImportError:  # a system without limits of this kind
    resource = None

MAX_CONNECTIONS = 4096
WAIT_SECONDS = 10.0  # in which a client must send the head of a request, or take a reply
EXPIRY_SECONDS = 0.002  # from closing one connection to closing the next
LOG_SECONDS = 60.0
LOGGER = logging.getLogger("uvicorn.error")


class Connections(ServerState):
    """The open connections, and those of them whose client has the next word.

    Args:
        most: Connections at a time. One address may have half of them.

    Attributes:
        waiting: Connections whose client has the next word, and since when, the idlest first.
    """

    def __init__(self, most: int):
        super().__init__()
        self.most, self.most_of_address = most, max(most // 2, 1)
        self.waiting: dict[Connection, float] = {}
        self._of_address: collections.Counter[str] = collections.Counter()

    def add(self, connection: "Connection") -> None:
        """Take a new connection, and close the idlest one if that is too many."""
        address = connection.address
        self._of_address[address] += 1
        if self._of_address[address] > self.most_of_address:
            self.shed(
                f"{address} has {self.most_of_address} connections, half of the limit", address
            )
        elif len(self.connections) > self.most:
            self.shed(f"There are {self.most} connections, which is the limit")
        self.update(connection)

    def remove(self, connection: "Connection") -> None:
        """Forget a connection that was lost."""
        self.waiting.pop(connection, None)
        self._of_address[connection.address] -= 1
        if not self._of_address[connection.address]:
            del self._of_address[connection.address]

    def update(self, connection: "Connection") -> None:
        """Note whether the client of a connection has the next word."""
        if connection.waits:
            self.waiting.setdefault(connection, time.monotonic())
        else:
            self.waiting.pop(connection, None)

    def shed(self, reason: str, address: str | None = None) -> None:
        """Close the idlest connection, of one address or of all, if the server waits for any.

        One that has never sent a request goes before one between two requests.
        """
        LOGGER.warning(
            "%s: the idlest are closed. More open files allow more (`ulimit -n`).", reason
        )
        idlest = None
        for connection in self.waiting:
            if address in (None, connection.address):
                idlest = idlest or connection
                if not connection.cycle:
                    idlest = connection
                    break
        if idlest:
            idlest.give_up()

    async def expire(self) -> None:
        """Close connections whose client has had the next word for too long, until cancelled.

        One at a time, since to close a thousand at once would hold up those that are served.
        """
        while True:
            idlest = next(iter(self.waiting), None)
            if idlest and self.waiting[idlest] < time.monotonic() - WAIT_SECONDS:
                idlest.give_up()
                await asyncio.sleep(EXPIRY_SECONDS)
            else:
                await asyncio.sleep(0.1)


class Connection(H11Protocol):
    """The protocol of uvicorn, which tells `Connections` when the client has the next word."""

    address = ""  # what stands for the client, see `client_of`; nothing if it has left already

    @property
    def waits(self) -> bool:
        """Whether the client must send something, or take what was sent, before work goes on."""
        cycle = self.cycle
        done = not cycle or cycle.response_complete or cycle.more_body
        return done or self.flow.write_paused

    @property
    def _all(self) -> Connections:
        return cast(Connections, self.server_state)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count a new connection, which may close another one."""
        super().connection_made(transport)
        if self.client:
            self.address = client_of(self.client[0])
        self._all.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._all.remove(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read a part of a request; once it is whole, the server has the next word."""
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:  # the head is whole, and the body has a time of its own
            self._all.waiting.pop(self, None)
        self._all.update(self)

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._all.update(self)

    def pause_writing(self) -> None:
        """Wait until the client takes what was sent."""
        super().pause_writing()
        self._all.update(self)

    def resume_writing(self) -> None:
        """Go on, as the client has taken what was sent."""
        super().resume_writing()
        self._all.update(self)

    def give_up(self) -> None:
        """Close the connection; whoever has sent a part of a head is told why."""
        self._all.waiting.pop(self, None)
        if self.conn.our_state is h11.IDLE and self.conn.trailing_data[0]:
            body = json.dumps({"error": "The head of the request did not arrive in time."})
            head = [("content-type", "application/json"), ("connection", "close")]
            head.append(("content-length", str(len(body))))
            events = h11.Response(status_code=408, headers=head), h11.Data(body.encode())
            # In one piece, since what the client still sends may reset the connection.
            self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
        self.transport.close()
        if self.transport.get_write_buffer_size():
            self.transport.abort()


class Sparing(logging.Filter):
    """Let a line of the program log once a minute, so that no client can fill a disk with it."""

    def __init__(self) -> None:
        super().__init__()
        self._next: dict[tuple[object, ...], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether that place in the code, with that kind of exception, may log again."""
        kind = record.exc_info[0] if record.exc_info else None
        place, now = (record.pathname, record.lineno, kind), time.monotonic()
        if now < self._next.get(place, now):
            return False
        self._next[place] = now + LOG_SECONDS
        return True


SPARING = Sparing()


def affordable() -> int:
    """Connections that the process can hold: three quarters of the files that it may still open.

    The limit of open files is raised as far as the process may do that itself.
    """
    if resource is None:
        return MAX_CONNECTIONS
    limit, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * MAX_CONNECTIONS
    if 0 <= limit < wanted:  # there is none below 0
        limit = wanted if hard < 0 else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    free = limit - len(os.listdir("/dev/fd")) if limit >= 0 else wanted
    return min(MAX_CONNECTIONS, max(free * 3 // 4, 1))
