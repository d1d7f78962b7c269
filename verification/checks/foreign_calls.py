"""Calls of a black box: values, error bars, probes read off the products, and what went wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from specbp.testing import blackbox, capture

ATTEMPTS = 3  # calls that fail in a row before the rest is not tried


class Calls(NamedTuple):
    """What R calls gave.

    Attributes:
        values: (R,), NaN where a call failed.
        errors: Error bars (R,), NaN where there is none.
        probes: Blocks (R, n, m), None where none were seen.
        failures: Reasons, one for each call that failed.
        changed: Number of calls that changed their matrix in place.
    """

    values: np.ndarray
    errors: np.ndarray
    probes: Tensor | None
    failures: list[str]
    changed: int


def called(
    estimate: Callable[..., Any], A: Tensor, R: int, key: Sequence[object], *, record: bool
) -> Calls:
    """R calls, each with a seed and a copy of A of its own; stops where nothing works."""
    found: list[blackbox.Outcome] = []
    records: list[list[Tensor]] = []
    failures, changed = [], 0
    for i in range(R):
        copy = A.clone()
        given: Any = capture.recording(copy) if record else copy
        found.append(blackbox.call_seeded(estimate, given, (*key, i)))
        changed += not torch.equal(copy, A)
        if record:
            records.append(_until_new(given.record, records[0] if records else None))
        reason = found[-1].reason
        if reason is not None:
            failures.append(reason)
            if len(failures) == i + 1 == ATTEMPTS:
                break
    values = [math.nan if one.value is None else one.value for one in found]
    errors = [math.nan if one.standard_error is None else one.standard_error for one in found]
    probes = varying_block(records, A.shape[-1])
    return Calls(np.array(values), np.array(errors), probes, failures, changed)


def _until_new(record: Sequence[capture.Product], known: list[Tensor] | None) -> list[Tensor]:
    """Blocks other than zero, up to the first that differs from the known one at its place.

    Blocks that are equal to known ones are these, which saves memory.
    """
    blocks = [p.block.double() for p in record if bool((p.block != 0).any())]
    if known is None:
        return blocks
    same = 0
    while same < min(len(blocks), len(known)) and torch.equal(blocks[same], known[same]):
        same += 1
    return [*known[:same], *blocks[same : same + 1]]


def varying_block(records: Sequence[list[Tensor]], n: int) -> Tensor | None:
    """The first block that is not the same in all calls, (R, n, m): a fixed one is no probe.

    None unless every call has one, all of one shape and finite.
    """
    new = (_new(record, records[0]) for record in records[1:])
    at = min((place for place in new if place is not None), default=None)
    if at is None or any(len(record) <= at for record in records):
        return None
    blocks = [record[at] for record in records]
    if len({tuple(block.shape) for block in blocks}) != 1:
        return None
    found = torch.stack(blocks)
    fits = found.ndim == 3 and found.shape[1] == n
    return found if fits and bool(torch.isfinite(found).all()) else None


def _new(record: list[Tensor], known: list[Tensor]) -> int | None:
    """Where a call differs from the first."""
    places = (i for i, b in enumerate(record) if i >= len(known) or not torch.equal(b, known[i]))
    return next(places, None)
