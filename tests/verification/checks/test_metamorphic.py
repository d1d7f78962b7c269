"""D5: each relation finds an estimator that breaks it and is right elsewhere."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from specbp.methods import METHODS
from specbp.testing.outcome import FAIL, PASS
from verification.checks import metamorphic
from verification.checks.settings import Settings
from verification.subjects import from_method

CHEBYSHEV, SLQ, QR, TRACE = (
    from_method(METHODS[name]) for name in ("chebyshev", "slq", "qr", "hutchinson")
)


def verdicts(claim, subject):
    return [check.verdict for check in claim(subject, Settings())]


def with_value(subject, change):
    """The estimator with `change(value, A, X)` for its value."""

    def estimate(A, *X, **config):
        found = subject.estimate(A, *X, **config)
        return replace(found, value=change(found.value, A, *X))

    return replace(subject, estimate=estimate)


def floored(value, A, *_X):
    """An absolute tolerance: what is small counts as 1e-6."""
    return torch.where(A.diagonal(dim1=-2, dim2=-1).amax(-1) < 1e-6, value + 1, value)


FAULTS = {
    "absolute tolerance": (metamorphic.scaling, with_value(CHEBYSHEV, floored)),
    "absolute tolerance, exact": (metamorphic.scaling, with_value(QR, floored)),
    "trace plus a constant": (metamorphic.scaling, with_value(TRACE, lambda v, _A, _X: v + 1e-9)),
    "divided by what may be zero": (
        metamorphic.zero,
        with_value(TRACE, lambda v, A, X: v * ((A @ X) / (A @ X)).mean((-2, -1))),
    ),
    "relative error on c I": (
        metamorphic.identity,
        with_value(SLQ, lambda v, _A, _X: v * (1 + 1e-9)),
    ),
    "odd part": (
        metamorphic.evenness,
        with_value(SLQ, lambda v, _A, X: v + 1e-9 * X.sum((-2, -1))),
    ),
    "n for |x|²": (
        metamorphic.homogeneity,
        with_value(SLQ, lambda v, _A, X: v * X.shape[-2] / X.square().sum(-2).mean(-1)),
    ),
    "first probe counts more": (
        metamorphic.permutation,
        with_value(SLQ, lambda v, _A, X: v + 1e-9 * X[..., 0, 0]),
    ),
    "cross terms": (metamorphic.blocks, with_value(SLQ, lambda v, A, _X: v + 1e-9 * len(A) ** 2)),
    "cross terms, exact": (metamorphic.blocks, with_value(QR, lambda v, A: v + 1e-9 * len(A) ** 2)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_broken_relations_are_seen(fault):
    claim, wrong = FAULTS[fault]
    right = next(s for s in (CHEBYSHEV, SLQ, QR, TRACE) if s.name == wrong.name)
    assert verdicts(claim, right) == [PASS]
    assert verdicts(claim, wrong) == [FAIL]


def test_relations_between_probes_need_probes():
    for claim in (metamorphic.evenness, metamorphic.homogeneity, metamorphic.permutation):
        assert verdicts(claim, QR) == []


def test_blocks_need_complete_krylov_spaces():
    assert verdicts(metamorphic.blocks, replace(SLQ, config={"num_steps": 5})) == []
