"""D8, D9, D12: wrong means, error bars, costs, and estimators that look away."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from specbp.estimate import from_samples
from specbp.methods import METHODS
from specbp.testing.outcome import FAIL, PASS
from verification.checks import aggregation
from verification.checks.settings import Settings
from verification.subjects import from_method

SLQ, QR, CHOLESKY, ALGORITHM1 = (
    from_method(METHODS[name]) for name in ("slq", "qr", "cholesky", "algorithm1")
)


def verdicts(claim, subject):
    return [check.verdict for check in claim(subject, Settings())]


def then(change, subject=SLQ):
    def estimate(*arguments, **config):
        return change(subject.estimate(*arguments, **config))

    return replace(subject, estimate=estimate)


def with_probes(change, subject=SLQ):
    """The estimator on `change(probes)`."""

    def estimate(A, X, **config):
        return subject.estimate(A, change(X), **config)

    return replace(subject, estimate=estimate)


def ddof_zero(found):
    m = found.samples.shape[-1]
    return replace(found, standard_error=found.standard_error * ((m - 1) / m) ** 0.5)


FAULTS = {
    "one probe short": (
        aggregation.mean,
        with_probes(lambda X: X[..., :-1] if X.shape[-1] > 1 else X),
    ),
    "sum for mean": (
        aggregation.mean,
        then(lambda found: replace(found, value=found.samples.sum(-1))),
    ),
    "median for mean": (
        aggregation.samples,
        then(lambda found: replace(found, value=found.samples.median(-1).values)),
    ),
    "ddof = 0": (aggregation.standard_error, then(ddof_zero)),
    "antithetic pairs counted twice": (
        aggregation.standard_error,
        with_probes(lambda X: torch.cat([X, -X], -1)),
    ),
    "an error bar from one probe": (
        aggregation.standard_error,
        then(lambda found: replace(found, standard_error=found.standard_error.nan_to_num(0.0))),
    ),
    "error bar not of the samples": (aggregation.samples, then(ddof_zero)),
    "probes of the first item": (
        aggregation.batch,
        with_probes(lambda X: X[:1].expand_as(X) if X.ndim > 2 else X),
    ),
    "products not counted": (
        aggregation.products,
        then(lambda found: replace(found, num_matvecs=found.num_matvecs - 1)),
    ),
    "products not needed": (
        aggregation.products,
        replace(SLQ, estimate=lambda A, X, **c: (A @ X, SLQ.estimate(A, X, **c))[1]),
    ),
    "last probe ignored": (
        aggregation.depends_on_probes,
        with_probes(lambda X: torch.cat([X[..., :-1], torch.ones_like(X[..., :1])], -1)),
    ),
    "a table of the interval": (
        aggregation.depends_on_matrix,
        replace(
            SLQ,
            estimate=lambda A, X, *, lower, **_c: from_samples(
                X.square().sum(-2) * torch.tensor(lower).log(), num_matvecs=0
            ),
        ),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_seen(fault):
    claim, wrong = FAULTS[fault]
    assert verdicts(claim, SLQ) == [PASS]
    assert verdicts(claim, wrong) == [FAIL]


def test_exact_methods_are_batched_and_look_at_their_matrix():
    for claim in (aggregation.batch, aggregation.products, aggregation.depends_on_matrix):
        assert verdicts(claim, QR) == [PASS]
        assert verdicts(claim, CHOLESKY) == [PASS]
    first = then(lambda f: replace(f, value=f.value[..., :1].expand(f.value.shape)), QR)

    def estimate(J):
        return first.estimate(J) if J.ndim > 2 else QR.estimate(J)

    wrong = replace(QR, estimate=lambda J: estimate(J.flip(-1) * torch.ones(J.shape[:1] + (1, 1))))
    assert verdicts(aggregation.batch, wrong) == [FAIL]
    same = then(lambda found: replace(found, value=torch.zeros_like(found.value)), QR)
    assert verdicts(aggregation.depends_on_matrix, same) == [FAIL]


def test_what_is_not_claimed_is_not_judged():
    for claim in (aggregation.mean, aggregation.standard_error):
        assert verdicts(claim, ALGORITHM1) == []
    uncalibrated = replace(SLQ, claims=replace(SLQ.claims, calibrated=False))
    wrong = replace(uncalibrated, estimate=then(ddof_zero).estimate)
    assert verdicts(aggregation.standard_error, wrong) == []
    assert verdicts(aggregation.samples, wrong) == [PASS]


def test_the_probe_that_is_ignored_is_named():
    (check,) = aggregation.depends_on_probes(FAULTS["last probe ignored"][1], Settings())
    assert "probe 3" in check.message
