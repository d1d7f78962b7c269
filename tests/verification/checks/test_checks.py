"""Tiers D and P as a whole: right estimators pass them, and wrong ones never crash them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from specbp.methods import METHODS
from specbp.testing.outcome import FAIL, PASS, REPORTED
from verification import checks
from verification.checks import gradients
from verification.checks.settings import Settings
from verification.subjects import from_method

CHEBYSHEV = from_method(METHODS["chebyshev"])
GATED = [name for name, row in METHODS.items() if row.claims.gated]


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", GATED)
def test_gated_methods_pass(name):
    subject = from_method(METHODS[name])
    found = checks.run(subject)
    # Of joint probes nothing is known one by one: what is not asked is said, and nothing else but
    # what parts a gradient from that of log det A.
    assert [str(check) for check in found if check.verdict not in (PASS, REPORTED)] == []
    reported = {c.message for c in found if c.verdict == REPORTED and c.name != gradients.PARTS}
    assert {message.split(": ")[-1] for message in reported} <= {checks.LEFT_OUT}
    assert not reported or subject.claims.joint


@pytest.mark.parametrize(
    ("name", "codes"),
    [
        ("qr", "D1 D5 D6a D6c D8 D9 D11 D12"),
        ("slq", "D1 D2 D5 D6a D6b D6c D6e D7 D8 D9 D10 D11 D12 P1 P2 P3"),
        ("chebyshev", "D1 D2 D3 D4 D5 D6a D6b D6c D6d D6e D8 D9 D10 D11 D12 P1 P2 P3"),
        ("algorithm1", "D1 D2 D5 D6a D6b D6c D8 D9 D11 D12 P1 P2 P3"),
    ],
)
def test_each_method_meets_the_checks_that_apply(name, codes):
    found = {check.name.split()[0] for check in checks.run(from_method(METHODS[name]))}
    assert found == set(codes.split())


def raising(*_arguments, **_config):
    raise TypeError("unexpected keyword argument 'interval'")


def test_an_estimator_that_raises_fails_every_check_with_the_reason():
    found = checks.run(replace(CHEBYSHEV, estimate=raising), "D")
    assert {check.verdict for check in found} == {FAIL}
    reasons = {check.message for check in found}
    assert reasons == {"raised TypeError: unexpected keyword argument 'interval'"}


@pytest.mark.parametrize(
    "change",
    [
        lambda found: replace(found, value=torch.full_like(found.value, torch.nan)),
        lambda found: replace(found, value=found.value.unsqueeze(-1)),
        lambda found: replace(found, value=found.value.flatten()[:1]),
        lambda found: found.value,
        lambda found: float(found.value.flatten()[0]),
        lambda _found: None,
    ],
    ids=["NaN", "one more dimension", "one value", "a tensor", "a float", "None"],
)
def test_an_estimator_that_returns_nonsense_fails_without_a_crash(change):
    def wrong(A, X, **config):
        return change(CHEBYSHEV.estimate(A, X, **config))

    found = checks.run(replace(CHEBYSHEV, estimate=wrong), "D")
    failed = {check.name.split()[0] for check in found if check.verdict == FAIL}
    assert failed >= {"D1", "D2", "D3", "D4", "D5", "D6a", "D6b", "D6c", "D8"}


def test_a_sampler_that_raises_fails_tier_p():
    found = checks.run(replace(CHEBYSHEV, sampler=raising), "P")
    assert {check.verdict for check in found} == {FAIL}
    assert all("raised TypeError" in check.message for check in found)


def test_probes_of_the_wrong_shape_fail_tier_p():
    def transposed(n, m, *, generator, batch_shape=(), **options):
        X = CHEBYSHEV.sampler(n, m, generator=generator, batch_shape=batch_shape, **options)
        return X.mT

    found = checks.run(replace(CHEBYSHEV, sampler=transposed), "P")
    assert {check.verdict for check in found} == {FAIL}
    assert "required" in found[0].message


def test_verdicts_of_tier_d_do_not_depend_on_the_epoch():
    first, second = (
        checks.run(from_method(METHODS["hutchinson"]), "D", Settings(epoch=epoch))
        for epoch in ("one", "two")
    )
    assert first == second


@pytest.mark.parametrize("tiers", ["", "X", "DX"])
def test_unknown_tiers_are_refused(tiers):
    with pytest.raises(ValueError, match="made of the letters DPS"):
        checks.run(CHEBYSHEV, tiers)
