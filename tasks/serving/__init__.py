"""`python -m tasks.<name> serve`: a trained model behind HTTP, until it is told to stop."""

import dataclasses

from tasks.puzzles.commands import Commands, ModelOptions
from tasks.shipped import called


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeOptions(ModelOptions):
    """Answer puzzles over HTTP.

    Attributes:
        host: Address to listen on. The default can be reached from this machine alone. A request
            must be for this host or for localhost; 0.0.0.0 listens on every address of the machine
            and takes requests for any host.
        port: 0 takes a free one.
        max_batch: Puzzles that are solved at a time.
        max_waiting: Puzzles that may wait for their turn; further ones are refused (503).
        timeout: Seconds in which a request must be answered (504).
        rate: Puzzles a second from one address, twice as many at once (429).
    """

    host: str = "127.0.0.1"
    port: int = 8000
    max_batch: int = 32
    max_waiting: int = 256
    timeout: float = 30.0
    rate: float = 20.0


def serve(commands: Commands, arguments: list[str]) -> int:
    """Serve until SIGINT or SIGTERM.

    Raises:
        CheckpointError: There is no such model.
        ValueError: An option is out of its range, or a package is missing.
        OSError: The address cannot be listened on.
    """
    # Here, since they need packages that only an extra installs, and no other command needs them.
    from tasks.serving.about import describe
    from tasks.serving.engine import Engine
    from tasks.serving.server import Server, Service, allowed_hosts, bracketed, listen

    task = commands.task
    options = commands.options(ServeOptions, arguments, "serve")
    path, model, config, steps = commands.trained(options)
    engine = Engine(model, steps, options.max_batch, options.max_waiting)
    try:
        with listen(options.host, options.port) as listener:
            host, port = listener.getsockname()[:2]
            hosts = allowed_hosts(options.host, host)
            about = describe(path, task.noun)
            if options.solver is not None:  # with which nobody has counted
                about["reliability"] = []
            service = Service(task, config, engine, options.timeout, options.rate, hosts, about)
            print(f"Serving {called(path)} on http://{bracketed(host)}:{port}", flush=True)
            Server(service).run([listener])
    finally:
        engine.close()
    return 0
