"""The HTTP server, and the socket it listens on."""

import ipaddress
import signal
import socket
from types import FrameType

try:
    import uvicorn

    from tasks.serving.app import Service, create_app
except ImportError as error:
    raise ValueError(
        "A service needs the packages `fastapi` and `uvicorn`: install the extra with "
        "`pip install 'attractor-models[serve]'`."
    ) from error

# Connections at a time, open ones included; beyond, the server replies 503 by itself.
MAX_CONNECTIONS = 1024


class Server(uvicorn.Server):
    """A server that drains before it stops: it answers requests in progress and refuses new ones.

    Args:
        service: What it serves.
    """

    def __init__(self, service: Service):
        # An address that a header claims could evade the rate limit: no proxy is trusted.
        config = uvicorn.Config(
            create_app(service),
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_graceful_shutdown=5,
        )
        super().__init__(config)
        self.service = service

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
    """A socket that accepts connections to an address."""
    if not 0 <= port < 2**16:
        raise ValueError(f"`--port` must lie between 0, which takes any, and 65535: got {port}.")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=MAX_CONNECTIONS)
    except OSError as error:
        raise ValueError(
            f"Cannot listen on {host!r}, port {port} ({error}). Name an address of this machine "
            "with `--host` and a free port with `--port`; 0 takes any."
        ) from error


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
