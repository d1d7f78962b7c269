"""Does randomness come from the seed, all of it, and afresh in every call?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from specbp.probes import generator_for
from specbp.testing import outcome
from specbp.testing.blackbox import global_state, invoke, isolated_rng, seed_of, takes_generator
from specbp.testing.capture import first_block, recording
from specbp.testing.outcome import FAIL, Check
from specbp.testing.repeats import bits_of, duplicate_checks
from specbp.testing.verdicts import settle

REMEDY = "draw once per call, from the generator that is passed, one block for the whole batch"


def assert_reproducible(
    estimator: Callable[..., Any],
    A: Any,
    *,
    seeds: int = 5,
    calls: int = 2,
    key: Sequence[object] = ("assert_reproducible",),
) -> Check:
    r"""Assert that equal seeds give equal bits, and that every call draws fresh probes.

    .. math:: s = s' \Rightarrow T = T', \qquad x_i \ne \pm x_j \text{ for all } i \ne j

    The probes are caught by a recording matrix, so that those shared between calls, seeds or items
    of a batch are found although no value shows it. With a generator, the global generators of
    torch, numpy and python must be left alone; without, they are seeded for the estimator and
    restored (`isolated_rng`).

    Args:
        estimator: A black box `(A)` or `(A, generator)`.
        A: Tensor or operator (..., n, n). With n ≤ 30 sign vectors may coincide by chance, which is
            allowed for.
        seeds: Different seeds, at least 2.
        calls: Calls in a row for every seed.
        key: Key of the seeds.

    Raises:
        AssertionError: Randomness is frozen, shared, or not that of the seed.

    Source: Salmon, Moraes, Dror and Shaw (2011), doi:10.1145/2063384.2063405, on what a stream of
    random numbers owes to its key.

    Example:
        >>> import torch
        >>> from specbp import hutchinson_trace, rademacher
        >>> def black_box(A, generator):
        ...     return hutchinson_trace(A, rademacher(64, 2, generator=generator))
        >>> A = torch.ones(64, 64, dtype=torch.float64)
        >>> assert_reproducible(black_box, A).verdict
        'PASS'
    """
    before = global_state()
    try:
        runs = [_run(estimator, A, (*key, s), calls) for s in range(seeds)]
        again = _run(estimator, A, (*key, 0), calls)
    except Exception as error:
        reason = f"raised {type(error).__name__}: {error}"
        return settle(outcome.broken("P3 same seed", "every call gives a value", reason))
    values = [bits for bits, _ in runs]
    checks = [_same_seed(values[0], again[0]), _new_seed(values)]
    if takes_generator(estimator):
        checks.append(_undisturbed(before == global_state()))
    blocks = _stacked([found for _, found in runs])
    if blocks is not None:
        items = [f"items of axis {i}" for i in range(blocks.ndim - 4)]
        checks += duplicate_checks(blocks, ["seeds", "calls", *items])
    return _settled(checks, captured=blocks is not None)


def _run(
    estimator: Callable[..., Any], A: Any, key: Sequence[object], calls: int
) -> tuple[list[bytes], list[Tensor | None]]:
    """Bits of the values and first blocks of several calls in a row from one seed."""
    generator = generator_for(*key) if takes_generator(estimator) else None
    values, blocks = [], []
    with isolated_rng(seed_of(key)) if generator is None else nullcontext():
        for _ in range(calls):
            recorder = recording(A)
            values.append(bits_of(invoke(estimator, recorder, generator)))
            blocks.append(_captured(recorder))
    return values, blocks


def _captured(recorder: Any) -> Tensor | None:
    try:
        return first_block(recorder.record)
    except ValueError:
        return None


def _stacked(runs: list[list[Tensor | None]]) -> Tensor | None:
    """Blocks (seeds, calls, ..., n, m), or None where some are missing or of another shape."""
    flat = [block for run in runs for block in run if block is not None]
    complete = len(flat) == len(runs) * len(runs[0])
    if not complete or len({tuple(block.shape) for block in flat}) != 1:
        return None
    return torch.stack(flat).reshape(len(runs), len(runs[0]), *flat[0].shape)


def _same_seed(first: list[bytes], again: list[bytes]) -> Check:
    unequal = sum(a != b for a, b in zip(first, again, strict=True))
    message = f"{unequal} of {len(first)} calls with the same seed gave other bits"
    return outcome.exactly("P3 same seed", "equal seeds give equal bits", unequal == 0, message)


def _new_seed(values: list[list[bytes]]) -> Check:
    flat = [bits for run in values for bits in run]
    different = len(set(flat))
    message = f"{different} different values in {len(flat)} calls of {len(values)} seeds"
    # A value from few sign vectors may repeat by chance; all of them never should.
    across = any(set(run) != set(values[0]) for run in values)
    within = len(values[0]) < 2 or any(len(set(run)) > 1 for run in values)
    return outcome.exactly(
        "P3 new seed", "new seeds and further calls give new values", across and within, message
    )


def _undisturbed(holds: bool) -> Check:
    text = "untouched" if holds else "the state of torch, numpy or python has changed"
    claim = "a call with a generator leaves the global generators alone"
    return outcome.exactly("P3 global state", claim, holds, text)


def _settled(checks: list[Check], *, captured: bool) -> Check:
    verdict = outcome.worst(checks)
    check = next(c for c in checks if c.verdict == verdict)
    shown = [c for c in checks if c.verdict == FAIL] or checks
    parts = [f"{c.name[3:]}: {c.message}" for c in shown]
    if not captured:
        parts.append("probes could not be captured, duplicates were not looked for")
    codes = {c.name for c in checks if c.verdict == FAIL}
    likely = [text for name, text in LIKELY.items() if any(c.startswith(name) for c in codes)]
    return settle(replace(check, message="; ".join(parts)), likely=likely, remedy=REMEDY)


LIKELY = {
    "P3 same": "a draw from another source than the seed: a global generator, time, a hash",
    "P3 new": "frozen or cached probes, or a fixed seed inside; or a matrix on which every probe "
    "gives the same value: take one that is not a multiple of the identity",
    "P3 global": "a draw without `generator=`, or a seed set globally",
    "P2": "a seed that repeats, a cached block, antithetic pairs, or one draw for a whole batch",
}
