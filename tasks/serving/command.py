"""`python -m tasks.<name> serve`: a trained model behind HTTP, until it is told to stop."""

import dataclasses
import signal
import socket
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import tyro

from tasks.puzzles.task import GridTask
from tasks.runs import load_model, newest_grid_checkpoint
from tasks.serving.continuous import Engine

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Answer puzzles over HTTP.

    Attributes:
        checkpoint: The model; by default the newest one under `runs/` of the default size.
        depth: Budget of solver updates; by default the run's.
        solver: Another solver than the run's.
        device: "auto", "cpu", "cuda" or "cuda:N".
        host: Address to listen on. The default can be reached from this machine alone.
        port: 0 takes a free one.
        max_batch: Puzzles that are solved at a time.
        max_waiting: Puzzles that may wait for their turn; further ones are refused (503).
        timeout: Seconds in which a request must be answered (504).
        rate: Requests a second from one address, twice as many at once (429).
    """

    checkpoint: Path | None = None
    depth: Annotated[int | None, tyro.conf.arg(aliases=["--max-steps"])] = None
    solver: str | None = None
    device: str = "auto"
    host: str = "127.0.0.1"
    port: int = 8000
    max_batch: int = 32
    max_waiting: int = 256
    timeout: float = 30.0
    rate: float = 20.0


class Server(uvicorn.Server):
    """A server that ends in order: what is being worked on is answered, and what comes refused.

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
        """Begin to end; at once, if told so twice."""
        if self.service.draining:
            super().handle_exit(signal.SIGINT, frame)
        self.service.draining = True

    async def on_tick(self, counter: int) -> bool:
        """Whether it is time to stop listening."""
        done = self.service.draining and self.service.in_flight == 0
        return await super().on_tick(counter) or done


def serve(task: GridTask[Any, Any], options: ServeOptions) -> int:
    """Serve until SIGINT or SIGTERM.

    Raises:
        CheckpointError: There is no such model.
        ValueError: An option is out of its range.
        OSError: The address cannot be listened on.
    """
    default_side = task.presets[task.default_preset].spec().side
    path = options.checkpoint or newest_grid_checkpoint(task, default_side)
    model, config = load_model(task, path, device=options.device, solver=options.solver)
    depth = config.eval_steps if options.depth is None else options.depth
    engine = Engine(model, depth, options.max_batch, options.max_waiting)
    try:
        service = Service(task, config, engine, options.timeout, options.rate)
        with listen(options.host, options.port) as listener:
            host, port = listener.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            print(f"Serving {path} on http://{shown}:{port}", flush=True)
            Server(service).run([listener])
    finally:
        engine.close()
    return 0


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
