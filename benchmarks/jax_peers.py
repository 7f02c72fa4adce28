"""The same problems in JAX: run as a script, in an environment with jax, jaxopt, optimistix.

    python jax_peers.py PROBLEM.npz ANSWERS.npz

PROBLEM.npz holds `weight:*` and `arg:*` arrays and a JSON `setting`. The returned values go to
ANSWERS.npz, where they can be judged by others, and timings as JSON to standard output.
"""

import functools
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

# One core, as for the others: XLA sizes its thread pool by this when jax is imported.
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import optimistix

HEADS, GAIN = 4, 0.45
Theta = dict[str, Any]


def tanh_map(y: Any, theta: Theta) -> Any:
    return jnp.tanh(y @ theta["weight:weight"].T + theta["arg:injection"])


def rate_map(y: Any, theta: Theta) -> Any:
    return theta["arg:injection"] + theta["arg:rate"] * jnp.tanh(y @ theta["weight:weight"].T)


def layer_norm(h: Any) -> Any:
    centred = h - h.mean(-1, keepdims=True)
    return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)


def blocks_map(y: Any, theta: Theta) -> Any:
    h = theta["arg:injection"] + GAIN * y
    batch, tokens, width = y.shape
    for i in range(len(theta) // 4):
        qkv, out, up, down = (theta[f"weight:{i}.{part}"] for part in ("qkv", "out", "up", "down"))
        split = (layer_norm(h) @ qkv.T).reshape(batch, tokens, 3, HEADS, -1)
        q, k, v = split.transpose(2, 0, 3, 1, 4)
        weights = jax.nn.softmax(q @ k.swapaxes(-1, -2) / (width // HEADS) ** 0.5, axis=-1)
        mixed = (weights @ v).swapaxes(1, 2).reshape(batch, tokens, width)
        h = h + GAIN * (mixed @ out.T)
        h = h + GAIN * (jax.nn.gelu(layer_norm(h) @ up.T, approximate=True) @ down.T)
    return layer_norm(h)


MAPS = {"tanh": tanh_map, "rate": rate_map, "blocks": blocks_map}


def norms(y: Any) -> Any:
    """Per sample."""
    return jnp.sqrt((y.reshape(len(y), -1) ** 2).sum(1))


def size_of_solution(f: Callable[..., Any], y0: Any, theta: Theta, setting: Any) -> Any:
    """Norm of the solution per sample: jaxopt and optimistix take absolute tolerances."""

    def step(carry: Any) -> Any:
        y, _, count = carry
        fy = f(y, theta)
        return fy, (norms(fy - y) / norms(fy)).max(), count + 1

    def unfinished(carry: Any) -> Any:
        return (carry[1] > setting["rtol"]) & (carry[2] < setting["max_steps"])

    start = (y0, jnp.asarray(jnp.inf, y0.dtype), 0)
    return norms(jax.jit(lambda: jax.lax.while_loop(unfinished, step, start))()[0])


def contenders(
    f: Callable[..., Any], sizes: Any, setting: Any, share: float
) -> dict[str, Callable[..., Any]]:
    """Solvers (y0, theta) -> y that stop at this share of the loosest tolerance.

    jaxopt stops by the norm of the whole batch; optimistix takes any norm, here that of the
    worst sample.
    """
    budget, rtol = setting["max_steps"], share * setting["rtol"]
    whole = float(rtol * jnp.linalg.norm(sizes))
    picard = jaxopt.FixedPointIteration(f, maxiter=budget, tol=whole)
    anderson = jaxopt.AndersonAcceleration(f, maxiter=budget, tol=whole, ridge=1e-10)
    iteration = optimistix.FixedPointIteration(
        rtol=0.0, atol=float(rtol * sizes.max()), norm=lambda y: norms(y).max()
    )

    def optimistix_picard(y0: Any, theta: Theta) -> Any:
        return optimistix.fixed_point(f, iteration, y0, theta, max_steps=budget, throw=False).value

    return {
        "jaxopt picard": lambda y0, theta: picard.run(y0, theta).params,
        "jaxopt anderson, ridge 1e-10": lambda y0, theta: anderson.run(y0, theta).params,
        "optimistix picard": optimistix_picard,
    }


def tighten(name: str, f: Callable[..., Any], y0: Any, theta: Theta, setting: Any) -> Any:
    """Halve an absolute tolerance until every sample meets the relative one.

    Returns:
        Seconds to compile and run once, the jitted solver, its answer, and its calls of `f`.
    """
    sizes = size_of_solution(f, y0, theta, setting)
    for share in (2.0**-n for n in range(7)):
        solve = jax.jit(contenders(f, sizes, setting, share)[name])
        seconds, y = timed(functools.partial(solve, y0, theta))
        fy = jax.jit(f)(y, theta)
        if bool((norms(fy - y) <= setting["slack"] * setting["rtol"] * norms(fy)).all()):
            break
    calls = [0]

    def report() -> None:
        calls[0] += 1

    def counted(y: Any, theta: Theta) -> Any:
        jax.debug.callback(report)
        return f(y, theta)

    jax.block_until_ready(jax.jit(contenders(counted, sizes, setting, share)[name])(y0, theta))
    jax.effects_barrier()
    return seconds, solve, y, calls[0]


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = jax.block_until_ready(call())
    return time.perf_counter() - began, result


def repeat(f: Callable[..., Any], count: int, y: Any, theta: Theta) -> Any:
    """The bare calls that a solve is compared with."""
    return jax.lax.fori_loop(0, count, lambda _, y: f(y, theta), y)


def main() -> None:
    with np.load(sys.argv[1]) as loaded:
        arrays = dict(loaded)
    setting = json.loads(str(arrays.pop("setting")))
    jax.config.update("jax_enable_x64", setting["dtype"] == "float64")
    theta = {key: jnp.asarray(value, setting["dtype"]) for key, value in arrays.items()}
    f, y0 = MAPS[setting["kind"]], jnp.zeros(setting["shape"], setting["dtype"])
    rows, values, calls = [], {}, {}
    for name in contenders(f, jnp.ones(1), setting, 1.0):
        compiling, solve, values[name], count = tighten(name, f, y0, theta, setting)
        bare = jax.jit(functools.partial(repeat, f, count))
        calls[name] = functools.partial(solve, y0, theta)
        calls[f"{name} bare"] = functools.partial(bare, y0, theta)
        rows.append({"solver": name, "evaluations": count, "compile_ms": 1e3 * compiling})
    seconds = interleaved(calls, setting["rounds"])
    for row in rows:
        row["wall_ms"] = 1e3 * seconds[row["solver"]]
        row["overhead"] = seconds[row["solver"]] / seconds[f"{row['solver']} bare"]
    np.savez(sys.argv[2], **{name: np.asarray(value) for name, value in values.items()})
    print(json.dumps(rows))


def interleaved(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each call; this script may not import what needs torch."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for number in range(rounds):
        order = list(calls)
        random.Random(number).shuffle(order)
        for name in order:
            seconds[name].append(timed(calls[name])[0])
    return {name: statistics.median(measured) for name, measured in seconds.items()}


if __name__ == "__main__":
    main()
