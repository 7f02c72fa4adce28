"""Counts and times of requests, in the text format of Prometheus."""

import collections

from tasks.serving.engine import Engine

BUCKETS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # seconds


class Metrics:
    """Counts requests, and times those to `/solve`."""

    PATHS = ("/", "/solve", "/trajectory", "/about", "/docs", "/health", "/metrics")

    def __init__(self, engine: Engine):
        self.engine, self.steps, self.seconds = engine, 0, 0.0
        self.requests: collections.Counter[tuple[str, int]] = collections.Counter()
        self.buckets = [0] * (len(BUCKETS) + 1)

    def count(self, path: str, status: int, seconds: float) -> None:
        """Count one reply."""
        self.requests[path if path in self.PATHS else "other", status] += 1
        if path == "/solve" and status == 200:
            self.seconds += seconds
            self.buckets[sum(seconds > bound for bound in BUCKETS)] += 1

    def text(self) -> str:
        """All metrics as Prometheus reads them."""
        lines = ["# TYPE requests_total counter"]
        for (path, status), count in sorted(self.requests.items()):
            lines.append(f'requests_total{{path="{path}",status="{status}"}} {count}')
        lines.append("# TYPE solve_seconds histogram")
        total = 0
        for bound, count in zip([*map(str, BUCKETS), "+Inf"], self.buckets, strict=True):
            total += count
            lines.append(f'solve_seconds_bucket{{le="{bound}"}} {total}')
        lines += [f"solve_seconds_sum {self.seconds:.6f}", f"solve_seconds_count {total}"]
        waiting = max(self.engine.pending - self.engine.running, 0)
        for name, kind, value in (
            ("solver_steps_total", "counter", self.steps),
            ("network_calls_total", "counter", self.engine.calls),
            ("network_rows_total", "counter", self.engine.rows),
            ("puzzles_running", "gauge", self.engine.running),
            ("puzzles_waiting", "gauge", waiting),
        ):
            lines += [f"# TYPE {name} {kind}", f"{name} {value}"]
        return "\n".join(lines) + "\n"
