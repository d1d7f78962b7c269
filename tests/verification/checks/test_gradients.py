"""D6 and D8 of gradients: scaled, detached and partial gradients are found, values untouched."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from specbp import exact, generator_for, matrices
from specbp.estimate import from_samples
from specbp.methods import METHODS
from specbp.testing.outcome import FAIL, PASS, REPORTED
from verification.cases import dense_spectral
from verification.checks import gradient_forms, gradients
from verification.checks.problems import problem
from verification.checks.settings import Settings
from verification.subjects import from_method

CHEBYSHEV, TAYLOR, SLQ, TRACE, GOLUB_KAHAN, QR, PLAIN, DRAWN = (
    from_method(METHODS[name])
    for name in (
        "chebyshev",
        "taylor",
        "slq",
        "hutchinson",
        "golub_kahan",
        "qr",
        "algorithm1_plain",
        "randomised_chebyshev",
    )
)
SMALL = Settings(array_n=16)
CHECKS = {claim.name: claim for claim in gradients.CHECKS}
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
    silent = replace(SLQ, gradient=None)
    assert [verdicts(claim, silent) for claim in gradients.CHECKS] == [[]] * len(gradients.CHECKS)


def test_gradients_of_single_probes_are_quadratic_forms():
    view = problem("easy", 10).views["A"]
    X = torch.ones(10, 2, dtype=torch.float64)
    X[0, 1] = -1
    found = gradients.gradients(TRACE, view, torch.ones(10, 10, dtype=torch.float64), X)
    assert found == pytest.approx([100.0, 64.0])


# Of quadratures, exact methods and factors --------------------------------------------------------


@pytest.mark.parametrize("subject", [SLQ, GOLUB_KAHAN, QR], ids=lambda subject: subject.name)
def test_every_claim_that_is_made_holds(subject):
    found = [
        (claim.name, verdict) for claim in gradients.CHECKS for verdict in verdicts(claim, subject)
    ]
    assert {verdict for _, verdict in found} <= {PASS, REPORTED}
    assert {"D6a differences", "D6a form", "D6c scale"} <= {name for name, _ in found}
    assert ("D6b basis" in {name for name, _ in found}) == (subject is not QR)


def test_the_derivative_of_a_truncated_quadrature_is_another():
    """Three steps: the form is met, and what differences would say is not asked."""
    short = replace(SLQ, config={"num_steps": 3})
    assert verdicts(gradients.form, short) == [PASS]
    assert verdicts(gradients.differences, short) == []
    posing = replace(short, gradient="derivative")
    assert verdicts(gradients.differences, posing) == [FAIL]


@pytest.mark.parametrize("name", ["form", "basis"])
@pytest.mark.parametrize("subject", [SLQ, GOLUB_KAHAN, QR], ids=lambda subject: subject.name)
def test_one_millionth_of_any_gradient_is_seen(name, subject):
    if (name, subject) == ("basis", QR):
        return
    wrong = with_gradient(subject, lambda found: (1 + 1e-6) * found.value)
    assert verdicts(getattr(gradients, name), wrong) == [FAIL]


def test_the_gradient_of_algorithm1_holds_its_interval_fixed():
    """Where the power method has converged: beyond its end the polynomial amplifies rounding."""
    eigenvalues = np.concatenate([np.linspace(0.5, 1, 9), [5.0]])
    Q = matrices.haar(10, generator=generator_for("algorithm1"))
    view = dense_spectral(torch.from_numpy(eigenvalues), Q, torch.float64).views["A"]
    X = torch.ones(10, 2, dtype=torch.float64)
    X[0, 1] = -1
    change = torch.full((10, 10), 0.01, dtype=torch.float64)
    found = gradients.gradients(PLAIN, view, change, X)
    expected = gradient_forms.forms(PLAIN, view, change, X)
    limit = gradient_forms.limit(PLAIN, view, change, X)
    assert np.abs(found - expected).max() <= limit < 1e-8


def test_an_interval_that_moves_is_found_out():
    def moving(A, X, **config):
        found = CHEBYSHEV.estimate(A, X, **config)
        a, b = (torch.as_tensor(end) for end in config["interval"])
        extra = 1e-6 * (b * a / a.detach() ** 2) * X[0, 0]
        return replace(found, value=found.value + extra - extra.detach())

    assert verdicts(gradients.interval, CHEBYSHEV) == [PASS]
    assert verdicts(gradients.interval, TAYLOR) == [PASS]
    assert verdicts(gradients.interval, replace(CHEBYSHEV, estimate=moving)) == [FAIL]
    assert verdicts(gradients.interval, SLQ) == verdicts(gradients.interval, DRAWN) == []


def test_both_parts_of_the_error_are_said_side_by_side():
    found = CHECKS["D6e parts"](CHEBYSHEV, SMALL)
    assert [check.verdict for check in found] == [REPORTED] * 2
    for check, spectrum in zip(found, gradients.SPECTRA, strict=True):
        assert spectrum in check.message
        assert "truncation" in check.message
        assert "sampling" in check.message
    easy, hard = (check.statistic for check in found)
    assert easy < 1e-9 < 1e-6 < hard  # degree 40
    assert CHECKS["D6e parts"](TRACE, SMALL) == CHECKS["D6e parts"](QR, SMALL) == []


def test_the_sampling_part_is_the_standard_deviation_of_one_probe():
    """All 2^9 sign vectors at n = 10 have it exactly."""
    view = problem("cond 1e2", 10).views["A"]
    signs = torch.from_numpy(exact.all_signs(10)).mT
    change = torch.ones(10, 10, dtype=torch.float64) * 1e-3
    found = gradients.gradients(SLQ, view, change, signs)  # n steps
    L = gradient_forms.matrix(SLQ, view, change)
    assert found.std() == pytest.approx(exact.moments(L, "rademacher").variance ** 0.5, rel=1e-8)
    assert found.mean() == pytest.approx(gradient_forms.truth(SLQ, view, change), rel=1e-8)


@pytest.mark.parametrize("name", ["block_slq", "block_golub_kahan"])
def test_joint_probes_have_the_mean_gradient_of_complete_spaces(name):
    subject = from_method(METHODS[name])
    found = {claim.name: verdicts(claim, subject) for claim in gradients.CHECKS}
    assert {key for key, value in found.items() if value} == {"D6b complete"}
    assert found["D6b complete"] == [PASS]
    wrong = with_gradient(subject, lambda found: (1 + 1e-6) * found.value)
    assert verdicts(gradients.complete, wrong) == [FAIL]


def test_a_krylov_form_in_a_complete_space_is_that_of_the_matrix():
    view, x = problem("cond 1e2", 10).views["A"], np.arange(1.0, 11)
    change = torch.ones(10, 10, dtype=torch.float64)
    L = gradient_forms.matrix(SLQ, view, change)
    found = gradient_forms.krylov_form(view, x, 10, change.numpy())
    assert found == pytest.approx(x @ L @ x, rel=1e-9)
    assert gradient_forms.krylov_form(view, x, 4, change.numpy()) != pytest.approx(found, rel=1e-3)


def test_the_change_of_a_gram_matrix_is_its_derivative():
    view = problem("easy", 10).views["J"]
    dJ = torch.randn(10, 10, generator=generator_for("gram"), dtype=torch.float64)
    up, down = (view.operator + sign * dJ for sign in (1, -1))
    by_differences = (up.mT @ up - down.mT @ down) / 2
    found = gradient_forms.of_gram(GOLUB_KAHAN, view, dJ)
    np.testing.assert_allclose(found, by_differences.numpy(), atol=1e-13)
    assert (found == found.T).all()
