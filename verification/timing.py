"""What an estimate costs beside its products: ratios of interleaved medians within one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from specbp import Jacobian, JacobianMetric, generator_for, rademacher
from specbp.methods import METHODS
from specbp.operators import Dense
from verification import training
from verification.store import Record

PROBES, STEPS, REPEATS = 10, 20, 15
NETWORKS = ("bottleneck-d64", "bottleneck-d784", "wideresnet-1x16x16", "dcgan-z64")
LIMITS = {"polynomial": 1.15, "krylov, dense": 1.3, "krylov, network": 1.25}


def study(repeats: int = REPEATS) -> Iterator[Record]:
    """Overhead of each method on each problem, float64 and float32, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for dtype in (torch.float64, torch.float32):
            yield from _problem("dense n=1000", *_dense(dtype), repeats)
            for name in NETWORKS:
                yield from _problem(name, *_network(name, dtype), repeats)
    finally:
        torch.set_num_threads(threads)


def products(pairs: int = 20, repeats: int = 3) -> Iterator[Record]:
    """Milliseconds of a pair J x, Jᵀu by each method of `Jacobian`, set-up shared by `pairs`."""
    for name in ("bottleneck-d2", *NETWORKS, "dcgan-z128"):
        f = training.build(name, "init", torch.float32)
        z = training.points(name, 1, torch.float32)[0]
        for m in (1, 16, 64):
            candidates = {
                method: partial(_pairs, f, z, m, pairs, method)
                for method in ("forward", "graph", "tape", "auto")
            }
            for method, seconds in interleaved(candidates, repeats).items():
                milliseconds = 1e3 * seconds / pairs
                yield {"network": name, "m": m, "method": method, "milliseconds": milliseconds}


def _pairs(f: torch.nn.Module, z: Tensor, m: int, pairs: int, method: str) -> None:
    J = Jacobian(f, z, event_dim=z.ndim, method=method, check=False)
    generator = generator_for("timing")
    X = rademacher(J.shape[-1], m, generator=generator, dtype=J.dtype)
    U = rademacher(J.shape[-2], m, generator=generator, dtype=J.dtype)
    for _ in range(pairs):
        J @ X
        J.mT @ U


def interleaved(candidates: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each candidate, run in turn so that slow moments hit all of them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats + 1):  # the first round warms up
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def _dense(dtype: torch.dtype) -> tuple[Any, Any, tuple[float, float]]:
    n = 1000
    W = torch.randn(n, n, generator=generator_for("timing", "dense"), dtype=torch.float64)
    A = W @ W.mT / n + torch.eye(n, dtype=torch.float64)
    J = torch.linalg.cholesky(A).mT.contiguous()
    return A.to(dtype), J.to(dtype), (0.9, 6.0)


def _network(name: str, dtype: torch.dtype) -> tuple[Any, Any, tuple[float, float]]:
    z = training.points(name, 1, dtype)[0]
    J = Jacobian(training.build(name, "init", dtype), z, event_dim=z.ndim)
    return JacobianMetric(J), J, (1e-8, 1e4)


def _problem(
    problem: str, A: Any, J: Any, interval: tuple[float, float], repeats: int
) -> Iterator[Record]:
    X = rademacher(
        J.shape[-1], PROBES, generator=generator_for("timing"), dtype=J.dtype, device=J.device
    )
    steps = min(STEPS, J.shape[-1])
    dense = isinstance(A, Tensor)
    floors = {"A": _layouts(A, X, steps), "J": _factor_layouts(J, X, steps)}
    arguments = {
        "slq": {"num_steps": steps},
        "golub_kahan": {"num_steps": steps},
        "chebyshev": {"degree": 2 * steps, "interval": interval},
        "taylor": {"degree": 2 * steps, "upper": interval[1]},
    }
    candidates: dict[str, Callable[[], Any]] = {
        name: partial(METHODS[name].estimate, J if METHODS[name].on == "J" else A, X, **kwargs)
        for name, kwargs in arguments.items()
    }
    for on, layouts in floors.items():
        candidates |= {f"products {on} {layout}": run for layout, run in layouts.items()}
    seconds = interleaved(candidates, repeats)
    for name in arguments:
        on = METHODS[name].on
        floor = min(value for key, value in seconds.items() if key.startswith(f"products {on}"))
        krylov = "krylov, dense" if dense else "krylov, network"
        limit = LIMITS[krylov if name in ("slq", "golub_kahan") else "polynomial"]
        yield _record(problem, name, J.dtype, steps, seconds[name], floor, limit)


def _layouts(A: Any, X: Tensor, steps: int) -> dict[str, Callable[[], None]]:
    """The products alone, in the layouts at hand."""
    dense = isinstance(A, Tensor)
    rows = [X.mT.clone().mT for _ in range(steps)]
    found: dict[str, Callable[[], None]] = {
        "rows": partial(_repeat, Dense(A) if dense else A, rows)
    }
    if dense:
        found["columns"] = partial(_repeat, A, [block.contiguous() for block in rows])
    return found


def _factor_layouts(J: Any, X: Tensor, steps: int) -> dict[str, Callable[[], None]]:
    """The products with JᵀJ alone, in the layouts at hand."""
    if isinstance(J, Tensor):
        columns = _layouts(JacobianMetric(J), X, steps)["rows"]
        return {**_layouts(JacobianMetric(Dense(J)), X, steps), "columns": columns}
    return _layouts(JacobianMetric(J), X, steps)


def _repeat(A: Any, blocks: list[Tensor]) -> None:
    # As in an estimate, every product meets another block of vectors.
    for X in blocks:
        A @ X


def _record(
    problem: str,
    method: str,
    dtype: torch.dtype,
    steps: int,
    estimate: float,
    products: float,
    limit: float,
) -> Record:
    name = str(dtype).removeprefix("torch.")
    return {
        "kind": "timing",
        "id": f"overhead|{problem}|{method}|{name}",
        "name": "overhead",
        "problem": problem,
        "method": f"{method} m={PROBES}, {steps} products each",
        "dtype": name,
        "seconds_estimate": estimate,
        "seconds_products": products,
        "ratio": estimate / products,
        "limit": limit,
    }
