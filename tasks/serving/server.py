"""The HTTP server, and the socket it listens on."""

import asyncio
import errno
import ipaddress
import logging
import signal
import socket
from types import FrameType
from typing import Any

try:
    import uvicorn

    from tasks.serving.app import create_app
    from tasks.serving.connections import SPARING, Connection, Connections, affordable
    from tasks.serving.service import Service
except ImportError as error:
    raise ValueError(
        "A service needs the packages `fastapi` and `uvicorn`: install the extra with "
        "`pip install 'attractor-models[serve]'`."
    ) from error

# Connections that the system keeps until they are accepted, and how many are at a time: few, as
# each takes a file before `Connections` can close another one.
BACKLOG, ACCEPTED = 4096, 16
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Server(uvicorn.Server):
    """A server that drains before it stops: it answers open requests and refuses new ones."""

    def __init__(self, service: Service):
        most = affordable()
        # An address that a header claims could evade the rate limit: no proxy is trusted.
        config = uvicorn.Config(
            create_app(service),
            http=Connection,
            ws="none",
            loop="asyncio",
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=ACCEPTED,
            # Where all connections are at work and none can be closed, uvicorn replies 503.
            limit_concurrency=most + ACCEPTED + 1,
            timeout_graceful_shutdown=5,
        )
        super().__init__(config)
        self.service, self.server_state = service, Connections(most)
        for name in ("uvicorn.error", "asyncio"):
            logging.getLogger(name).addFilter(SPARING)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and know what to do when no connection can be accepted."""
        asyncio.get_running_loop().set_exception_handler(self._failed)
        self._expiry = asyncio.ensure_future(self.server_state.expire())
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(BACKLOG)  # asyncio has set it to what it accepts at a time

    def _failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Make room where the process or the system has no file left for a new connection."""
        error = context.get("exception")
        if "socket" in context and isinstance(error, OSError) and error.errno in EXHAUSTED:
            self.server_state.shed(f"No connection can be accepted ({error})")
        else:
            loop.default_exception_handler(context)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Start to drain on the first signal, and stop at once on the second."""
        if self.service.draining:
            super().handle_exit(signal.SIGINT, frame)
        self.service.draining = True

    async def on_tick(self, counter: int) -> bool:
        """Whether it is time to stop listening."""
        done = self.service.draining and self.service.in_flight == 0
        return await super().on_tick(counter) or done


def listen(host: str, port: int) -> socket.socket:
    """A socket that accepts connections to an address; "::" stands for those of IPv4 as well."""
    if not 0 <= port < 2**16:
        raise ValueError(f"`--port` must lie between 0, which takes any, and 65535: got {port}.")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        both = host == "::" and socket.has_dualstack_ipv6()
        listener = socket.create_server(
            (host, port), family=family, backlog=BACKLOG, dualstack_ipv6=both
        )
    except OSError as error:
        raise ValueError(
            f"Cannot listen on {host!r}, port {port} ({error}). Name an address of this machine "
            "with `--host` and a free port with `--port`; 0 takes any."
        ) from error
    # Connections inherit it; without, the body of a reply waits 40 ms for the head to be confirmed.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def allowed_hosts(name: str, address: str) -> frozenset[str] | None:
    """The hosts that requests may be for, or None where they may be for any.

    A page of another site can point its own name at this machine and have the browser ask us under
    that name. So only our own names are taken, unless the service listens on every address of the
    machine, under names that it cannot know.

    Args:
        name: What the service was told to listen on.
        address: What it listens on.
    """
    if ipaddress.ip_address(address).is_unspecified:
        return None
    own = ("localhost", "127.0.0.1", "::1", address, name.lower())
    return frozenset(map(bracketed, own))


def bracketed(host: str) -> str:
    """A host as addresses of the web write it."""
    return f"[{host}]" if ":" in host else host
