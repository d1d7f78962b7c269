"""Time over products alone, and what float32 costs in accuracy, for the methods under judgement."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from specbp import Jacobian, JacobianMetric, generator_for, matrices, rademacher
from specbp.operators import Dense
from verification import training
from verification.budgets_cases import Shape
from verification.budgets_methods import Candidate
from verification.store import Record
from verification.timing import interleaved

SHAPE: Shape = (10, 20)
NETWORKS = ("bottleneck-d784", "wideresnet-1x16x16", "dcgan-z128")
LIMITS = {"J": 1.3, "A": 2.0}
CONDITIONS = (1e2, 1e4, 1e6, 1e8, 1e10)
N, SEEDS = 256, 10  # of the float32 study: larger than the space of the shape
PROMISED_COND, PROMISED_ERROR = 1e8, 1e-3


def time_study(candidates: Sequence[Candidate], repeats: int) -> Iterator[Record]:
    """Time of each judged method over that of its products, on one thread.

    The methods on J meet networks, those on A a dense matrix with n = 1000. The floor has as many
    products in blocks of the same width; a dense matrix is multiplied in both layouts of the block,
    and the faster is the floor.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for dtype in (torch.float64, torch.float32):
            for candidate in candidates:
                for problem, operator in _problems(candidate.on, dtype):
                    yield _timed(candidate, problem, operator, repeats)
    finally:
        torch.set_num_threads(threads)


def _problems(on: str, dtype: torch.dtype) -> Iterator[tuple[str, Any]]:
    if on == "A":
        W = torch.randn(1000, 1000, generator=generator_for("budgets", "dense")).to(dtype)
        yield "dense n=1000", W @ W.mT / 1000 + torch.eye(1000, dtype=dtype)
        return
    for name in NETWORKS:
        z = training.points(name, 1, dtype)[0]
        yield name, Jacobian(training.build(name, "init", dtype), z, event_dim=z.ndim)


def _timed(candidate: Candidate, problem: str, operator: Any, repeats: int) -> Record:
    probes, steps = SHAPE
    generator = generator_for("budgets", "time")
    X = rademacher(operator.shape[-1], probes, generator=generator, dtype=operator.dtype)
    floors = _floors(operator, X, steps, candidate.on)
    method = partial(candidate.estimate, operator, X, num_steps=steps)
    seconds = interleaved({"method": method, **floors}, repeats)
    layout, floor = min(((name, seconds[name]) for name in floors), key=lambda pair: pair[1])
    ratio, dtype = seconds["method"] / floor, str(operator.dtype).removeprefix("torch.")
    return {
        "kind": "budget-time",
        "id": f"time|{candidate.name}|{problem}|{dtype}",
        "method": candidate.name,
        "on": candidate.on,
        "problem": problem,
        "dtype": dtype,
        "seconds": seconds["method"],
        "seconds_products": floor,
        "layout": layout,
        "ratio": ratio,
        "limit": LIMITS[candidate.on],
    }


def _floors(operator: Any, X: Tensor, steps: int, on: str) -> dict[str, Callable[[], None]]:
    # As in an estimate, every product meets another block.
    rows = [X.mT.clone().mT for _ in range(steps)]
    if on == "J":
        return {"rows": partial(_repeat, JacobianMetric(operator), rows)}
    columns = [block.contiguous() for block in rows]
    return {
        "rows": partial(_repeat, Dense(operator), rows),
        "columns": partial(_repeat, operator, columns),
    }


def _repeat(A: Any, blocks: list[Tensor]) -> None:
    for X in blocks:
        A @ X


def float32_study(candidates: Sequence[Candidate]) -> Iterator[Record]:
    """Largest difference over seeds between float32 and float64 on the same J and probes.

    J has float32 entries in both, so that only the rounding of the estimate is seen.
    """
    for cond in CONDITIONS:
        for candidate in candidates:
            if candidate.on == "J":
                errors = [_float32_error(candidate, cond, seed) for seed in range(SEEDS)]
                yield _precision_record(candidate, cond, errors)


def _float32_error(candidate: Candidate, cond: float, seed: int) -> float:
    generator = generator_for("budgets", "float32", cond, seed)
    Q, U = (matrices.haar(N, generator=generator) for _ in range(2))
    J = ((U * matrices.lapack_mode(3, N, cond**0.5)) @ Q.mT).float()
    X = rademacher(N, SHAPE[0], generator=generator, dtype=torch.float32)
    single, double = (
        float(candidate.estimate(J.to(dtype), X.to(dtype), num_steps=SHAPE[1]).value)
        for dtype in (torch.float32, torch.float64)
    )
    return abs(single - double)


def _precision_record(candidate: Candidate, cond: float, errors: list[float]) -> Record:
    return {
        "kind": "budget-float32",
        "id": f"float32|{candidate.name}|{cond:g}",
        "method": candidate.name,
        "cond": cond,
        "n": N,
        # max() would let a NaN pass.
        "error": float(torch.tensor(errors, dtype=torch.float64).amax()),
        "limit": PROMISED_ERROR if cond <= PROMISED_COND else None,
    }
