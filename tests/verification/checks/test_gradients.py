"""D6 and D8 of gradients: scaled, detached and partial gradients are found, values untouched."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from specbp.estimate import from_samples
from specbp.methods import METHODS
from specbp.testing.outcome import FAIL, PASS
from verification.checks import gradients
from verification.checks.problems import problem
from verification.checks.settings import Settings
from verification.subjects import from_method

CHEBYSHEV, TAYLOR, SLQ, TRACE = (
    from_method(METHODS[name]) for name in ("chebyshev", "taylor", "slq", "hutchinson")
)
SMALL = Settings(array_n=16)
ALONG = (gradients.differences, gradients.form, gradients.basis, gradients.scale)


def verdicts(claim, subject):
    return [check.verdict for check in claim(subject, SMALL)]


def with_gradient(subject, of):
    """The same values with the gradient of `of(estimate)`."""

    def estimate(*arguments, **config):
        found = subject.estimate(*arguments, **config)
        like = of(found)
        return replace(found, value=found.value.detach() + like - like.detach())

    return replace(subject, estimate=estimate)


@pytest.mark.parametrize("claim", ALONG, ids=lambda claim: claim.name)
@pytest.mark.parametrize("subject", [CHEBYSHEV, TAYLOR, TRACE], ids=lambda subject: subject.name)
def test_gradients_are_those_of_the_contract(claim, subject):
    assert verdicts(claim, subject) == [PASS]


@pytest.mark.parametrize("claim", ALONG, ids=lambda claim: claim.name)
def test_one_millionth_of_a_gradient_is_seen(claim):
    wrong = with_gradient(CHEBYSHEV, lambda found: (1 + 1e-6) * found.value)
    assert verdicts(claim, wrong) == [FAIL]


def test_a_detached_value_fails_with_the_reason():
    def estimate(*arguments, **config):
        found = CHEBYSHEV.estimate(*arguments, **config)
        return replace(found, value=found.value.detach())

    (check,) = gradients.form(replace(CHEBYSHEV, estimate=estimate), SMALL)
    assert check.verdict == FAIL
    assert "does not require grad" in check.message


def test_the_gradient_of_one_probe_is_not_that_of_all():
    wrong = with_gradient(CHEBYSHEV, lambda found: found.samples[..., 0])
    assert verdicts(gradients.mean, CHEBYSHEV) == [PASS]
    assert verdicts(gradients.mean, wrong) == [FAIL]
    assert verdicts(gradients.form, wrong) == [PASS]


def normalised(A, X, *, detach):
    """tr A as |A| · tr(A / |A|), |A| from A itself; one of the two may lose its gradient."""
    length = torch.linalg.matrix_norm(A)
    outer = length.detach() if detach else length
    image = A @ X / length[..., None, None]
    samples = (X * image).sum(-2) * outer.unsqueeze(-1)
    return from_samples(samples, num_matvecs=X.shape[-1])


@pytest.mark.parametrize("claim", ALONG, ids=lambda claim: claim.name)
def test_a_scale_that_depends_on_the_matrix_is_differentiated(claim):
    right, wrong = (
        replace(TRACE, estimate=normalised, config={"detach": flag}) for flag in (False, True)
    )
    assert verdicts(claim, right) == [PASS]
    assert verdicts(claim, wrong) == [FAIL]


def norm_of(view):
    return float(np.linalg.norm(view.eigenvalues))


def test_a_contract_that_moves_with_the_matrix_is_followed():
    """f(λ) = λ / |A|, where f itself has a derivative along dA."""

    def estimate(A, X):
        return from_samples(
            (X * (A @ X)).sum(-2) / torch.linalg.matrix_norm(A).unsqueeze(-1), num_matvecs=1
        )

    moving = replace(
        TRACE,
        estimate=estimate,
        contract=lambda view: lambda x: np.asarray(x) / norm_of(view),
        slope=lambda view: lambda x: np.ones_like(x) / norm_of(view),
    )
    assert [verdicts(claim, moving) for claim in ALONG] == [[PASS]] * 4
    assert verdicts(gradients.form, replace(moving, estimate=TRACE.estimate)) == [FAIL]


def solved(A, X, *, power):
    """log det by its eigenvalues, with the gradient xᵀ A^power dA x."""
    with torch.no_grad():
        lam, V = torch.linalg.eigh(A)
        U = V @ (lam.pow(power).unsqueeze(-1) * (V.mT @ X))
        values = ((V.mT @ X) ** 2 * lam.log().unsqueeze(-1)).sum(-2)
    forms = (U * (A @ X)).sum(-2)
    return from_samples(values + forms - forms.detach(), num_matvecs=1)


SOLVE = replace(SLQ, estimate=solved, config={"power": -1}, arguments=lambda _view: {})


@pytest.mark.parametrize("claim", ALONG[1:], ids=lambda claim: claim.name)
def test_solves_have_another_form_with_the_same_trace(claim):
    right = replace(SOLVE, gradient="solve")
    assert verdicts(claim, right) == [PASS]
    assert verdicts(claim, replace(right, config={"power": -0.99})) == [FAIL]


def test_a_solve_is_not_the_derivative_of_the_value():
    assert verdicts(gradients.differences, replace(SOLVE, gradient="solve")) == []
    posing = replace(SOLVE, gradient="derivative")
    assert verdicts(gradients.differences, posing) == [FAIL]
    assert verdicts(gradients.form, posing) == [FAIL]
    assert verdicts(gradients.basis, posing) == [PASS]


def test_differences_limit_themselves_by_their_own_error():
    (check,) = gradients.differences(CHEBYSHEV, SMALL)
    assert 0 < check.margin < 1e-6


def test_no_gradient_is_claimed_no_check_is_made():
    assert [verdicts(claim, SLQ) for claim in gradients.CHECKS] == [[]] * 5


def test_gradients_of_single_probes_are_quadratic_forms():
    view = problem("easy", 10).views["A"]
    X = torch.ones(10, 2, dtype=torch.float64)
    X[0, 1] = -1
    found = gradients.gradients(TRACE, view, torch.ones(10, 10, dtype=torch.float64), X)
    assert found == pytest.approx([100.0, 64.0])
