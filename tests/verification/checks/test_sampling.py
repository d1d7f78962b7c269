"""Tier S: no false alarm on our methods, stated power, and wrong estimators are caught."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from specbp import exact, gaussian, generator_for, probes
from specbp.estimate import from_samples
from specbp.methods import METHODS
from specbp.testing.outcome import FAIL, INCONCLUSIVE, PASS, POWER, REPORTED
from verification.checks import replicates, sampling
from verification.checks.problems import problem
from verification.checks.replicates import Cell, Drawn, Reference
from verification.checks.settings import Settings
from verification.subjects import from_method

SETTINGS = Settings(alpha=1e-5)
STOCHASTIC = [row for row in METHODS.values() if row.uses_probes and row.claims.gated]
JOINT = [row.name for row in STOCHASTIC if row.claims.joint]


def subject(name, **changes):
    return replace(from_method(METHODS[name]), **changes)


def verdicts(judged, settings=SETTINGS):
    return {check.name: check.verdict for check in sampling.run(judged, settings)}


def changed(name, change):
    """The method with another function of its estimate: (estimate, operator, probes, options)."""
    right = METHODS[name].estimate

    def estimate(A, X, **options):
        return change(right(A, X, **options), A, X, options)

    return subject(name, estimate=estimate)


# Our methods --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [row.name for row in STOCHASTIC if row.name not in JOINT])
def test_methods_pass_with_power(name):
    found = verdicts(subject(name))
    assert set(found.values()) == {PASS}
    assert {"S1 mean", "S2 variance", "S3 error bars", "S4 coverage", "S5 duplicates"} <= set(found)
    # An adaptive interval truncates, and by how much the sampling cells do not know.
    claimed = METHODS[name].claims.gradient is not None
    assert ("S6 gradient mean" in found) == (claimed and METHODS[name].claims.additive)


@pytest.mark.parametrize("name", JOINT)
def test_joint_methods_pass_with_power_what_is_known_of_them(name):
    found, claims = verdicts(subject(name)), METHODS[name].claims
    assert found.pop("S2 variance", REPORTED) == REPORTED
    assert set(found.values()) == {PASS}
    assert ("S1 mean" in found) == (claims.expectation != "model")
    assert ("S3 error bars" in found) == (claims.calibrated or claims.conservative)


@pytest.mark.parametrize("law", ["gaussian", "sphere"])
def test_other_laws_pass(law):
    found = verdicts(subject("hutchinson", law=law, sampler=probes.LAWS[law]))
    assert set(found.values()) == {PASS}


def test_where_the_law_is_unknown_the_values_themselves_are_the_reference():
    claims = replace(METHODS["hutchinson"].claims, additive=False)
    joint = {"S1 mean": PASS, "S3 error bars": PASS, "S5 duplicates": PASS}
    assert verdicts(subject("hutchinson", claims=claims)) == joint
    # Error bars of orthogonal probes take them for independent: conservative, and seen.
    orthogonal = subject("hutchinson", law="orthogonal", sampler=probes.orthogonal)
    assert verdicts(orthogonal) == {**joint, "S3 error bars": FAIL}


def test_exact_methods_have_nothing_to_sample():
    assert sampling.run(subject("qr"), SETTINGS) == []


def test_where_no_cell_has_an_exact_reference_that_is_said():
    """Two Lanczos steps truncate everywhere: nothing is sampled, and nothing is hidden."""
    short = subject("slq", config={"num_steps": 2})
    checks = [c for c in sampling.run(short, SETTINGS) if c.name in ("S1 mean", "S2 variance")]
    assert [check.verdict for check in checks] == [REPORTED, REPORTED]
    assert all("no cell with an exact reference" in check.message for check in checks)


def test_the_same_epoch_gives_the_same_numbers_and_another_gives_others():
    first, again, other = (
        [c.message for c in sampling.run(subject("hutchinson"), s)]
        for s in (SETTINGS, SETTINGS, replace(SETTINGS, epoch="another"))
    )
    assert first == again
    assert first != other


# Wrong estimators ---------------------------------------------------------------------------------


def test_gaussian_probes_for_rademacher_are_caught():
    found = verdicts(subject("chebyshev", sampler=gaussian), replace(SETTINGS, sizes=(64,)))
    assert found["S2 variance"] == FAIL


def test_ddof_zero_is_caught():
    def ddof_zero(found, _A, X, _options):
        m = X.shape[-1]
        return replace(found, standard_error=found.standard_error * ((m - 1) / m) ** 0.5)

    found = verdicts(changed("hutchinson", ddof_zero))
    assert found["S3 error bars"] == FAIL
    assert found["S1 mean"] == PASS


def test_forgotten_log_of_the_scale_is_caught():
    def unscaled(found, A, _X, options):
        shift = A.shape[-1] * np.log(options["interval"][1])
        return replace(found, value=found.value - shift)

    assert verdicts(changed("chebyshev", unscaled))["S1 mean"] == FAIL


def test_an_error_in_one_cell_is_caught():
    def off_at_32(found, A, _X, _options):
        return replace(found, value=found.value + 3.0 * (A.shape[-1] == 32))

    assert verdicts(changed("slq", off_at_32))["S1 mean"] == FAIL


def test_repeated_probes_are_caught():
    def antithetic(n, m, *, generator, batch_shape=()):
        X = probes.rademacher(n, m // 2, generator=generator, batch_shape=batch_shape)
        return torch.cat([X, -X], -1)

    found = verdicts(subject("hutchinson", sampler=antithetic))
    assert found["S2 variance"] == FAIL


def test_repeated_seeds_are_caught():
    def period_of_five(n, m, *, generator, batch_shape=()):
        X = probes.rademacher(n, m, generator=generator, batch_shape=(5,))
        return X[torch.arange(*batch_shape) % 5]

    found = verdicts(subject("hutchinson", sampler=period_of_five))
    assert found["S5 duplicates"] == FAIL


def test_frozen_probes_are_caught_by_calls_of_their_own():
    def frozen(n, m, *, generator, batch_shape=()):
        return probes.rademacher(n, m, generator=generator_for("x"), batch_shape=batch_shape)

    assert verdicts(subject("hutchinson", sampler=frozen))["S5 duplicates"] == FAIL


def test_a_gradient_of_the_wrong_size_is_caught():
    def half(found, A, _X, _options):
        # The value is right, and half of its gradient is cut off.
        return replace(found, value=(found.value + found.value.detach()) / 2)

    found = verdicts(changed("taylor", half))
    assert found["S6 gradient mean"] == FAIL
    assert found["S1 mean"] == PASS


def test_one_percent_of_a_gradient_is_caught():
    def almost(found, _A, _X, _options):
        return replace(found, value=0.99 * found.value + 0.01 * found.value.detach())

    assert verdicts(changed("chebyshev", almost))["S6 gradient mean"] == FAIL


def test_a_gradient_from_one_probe_is_caught():
    def one_of_all(found, A, X, _options):
        one = A.shape[-1] * 0 + (X[..., :1] * (A @ X[..., :1])).sum((-2, -1))
        return replace(found, value=found.value.detach() + one - one.detach())

    found = verdicts(changed("hutchinson", one_of_all))
    assert found["S7 gradient variance"] == FAIL


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_one_estimate_that_is_not_finite_fails(value):
    def spoil(found, _A, _X, _options):
        spoiled = found.value.clone()
        spoiled.view(-1)[0] = value
        return replace(found, value=spoiled)

    checks = sampling.run(changed("hutchinson", spoil), SETTINGS)
    assert checks[0].verdict == FAIL
    assert "not finite" in checks[0].message


def test_an_estimator_that_raises_or_has_the_wrong_shape_fails_with_the_reason():
    def raising(_A, _X):
        raise RuntimeError("no luck")

    def one_for_all(A, X):
        return from_samples((X * (A @ X)).sum(-2).flatten(), num_matvecs=1)

    for estimate, reason in ((raising, "no luck"), (one_for_all, "shape")):
        checks = sampling.run(subject("hutchinson", estimate=estimate), SETTINGS)
        assert {check.verdict for check in checks} == {FAIL}
        assert reason in checks[0].message


# The machinery ------------------------------------------------------------------------------------


def references(count=15):
    cells = [cell for cell in replicates.GRID if cell.spectrum != "spike"][:count]
    for cell in cells:
        view = problem(cell.spectrum, cell.n).views["A"]
        B = exact.matrix_function(view.eigenvalues, view.eigenvectors, np.log)
        yield Reference(cell, view, B, "rademacher")


def rates(question, effect, repeats=300, **options):
    """Share of FAIL over normal replicates of the right mean and variance but for an effect."""
    refs, settings, failed = list(references()), Settings(**{"alpha": 0.05, **options}), []
    for i in range(repeats):
        rng = np.random.default_rng([repeats, i])

        def draw(ref, R, rng=rng):
            x = rng.standard_normal(R)
            if question.unit == sampling.MEAN:
                x += effect * (-1 if ref.one.mean < 0 else 1)
            else:
                x *= (1 + effect) ** 0.5
            return Drawn(ref.one.mean + ref.sd * x, np.ones(R))

        failed.append(sampling.family(question, refs, draw, settings))
    return np.mean([check.verdict == FAIL for check in failed]), failed[0]


@pytest.mark.parametrize("question", sampling.VALUES[:2], ids=lambda q: q.name)
def test_false_alarms_stay_within_the_level(question):
    # 300 trials of probability 0.05 exceed 30 with probability 2e-4.
    assert rates(question, 0.0)[0] <= 0.1


@pytest.mark.parametrize("question", sampling.VALUES[:2], ids=lambda q: q.name)
def test_the_detectable_effect_is_detected(question):
    _, check = rates(question, 0.0, repeats=1, alpha=1e-4)
    power, _ = rates(question, check.detectable, alpha=1e-4)
    # 300 trials of probability 0.95 stay below 0.9 with probability 3e-4.
    assert power >= POWER - 0.05


def test_a_suspicious_family_is_asked_again_with_more():
    """An effect between suspicion and rejection at the first look is settled by the second."""
    refs = list(references())
    asked = []

    def draw(ref, R):
        asked.append(R)
        x = np.linspace(-1, 1, R)
        shift = -0.12 if ref.one.mean < 0 else 0.12
        return Drawn(ref.one.mean + ref.sd * (x / x.std() + shift), np.ones(R))

    check = sampling.family(sampling.VALUES[0], refs, draw, SETTINGS)
    assert check.verdict == FAIL
    assert set(asked) == {64, 256}
    assert check.size == 256 * len(refs)


def test_the_level_is_split_over_the_looks():
    assert sampling._shares(3) == [0.25, 0.25, 0.5]
    assert sampling._shares(1) == [1.0]


def test_few_cells_are_asked_again_and_do_not_pass_blind():
    refs, once = list(references(2)), replace(SETTINGS, sizes=(64,))

    def draw(ref, R):
        x = np.linspace(-1, 1, R)
        return Drawn(ref.one.mean + ref.sd * x / x.std(), np.ones(R))

    mean = sampling.VALUES[0]
    blind, seeing = (sampling.family(mean, refs, draw, s) for s in (once, SETTINGS))
    assert blind.verdict == INCONCLUSIVE
    assert blind.detectable > mean.margin
    assert seeing.verdict == PASS
    assert seeing.size > blind.size


def test_truncation_is_bounded_and_allowed_for():
    slq = subject("slq")
    view = problem("cond 1e2", 48).views["A"]
    bound = replicates.truncation(slq, view)
    X = slq.draw(48, 200, generator=generator_for("t"))
    forms = exact.quadratic_forms(view.eigenvalues, view.eigenvectors, np.log, X.numpy())
    gaps = slq.call(view, X).samples.numpy() - forms
    assert 0 < gaps.max() <= bound
    assert replicates.truncation(slq, problem("cond 1e2", 16).views["A"]) == 0
    kept = {ref.cell for ref in replicates.references(slq)}
    assert Cell("cond 1e4", 16, 4) in kept
    assert all(ref.slack <= replicates.NEGLIGIBLE * ref.sd for ref in replicates.references(slq))
    ref = Reference(Cell("cond 1e2", 48, 2), view, np.eye(48), "rademacher", slack=0.5)
    assert [ref.centre(x) for x in (47.0, 48.2, 49.0)] == [47.5, 48.2, 48.5]


@pytest.mark.parametrize("name", ["chebyshev", "taylor", "hutchinson"])
def test_the_gradient_of_each_probe_is_the_form_of_the_reference(name):
    judged = subject(name)
    for ref in replicates.gradient_references(judged)[:6]:
        X = judged.draw(ref.cell.n, 5, generator=generator_for("g")).mT.unsqueeze(-1)
        found = replicates.Source(judged, SETTINGS)._derivative(ref, X)
        expected = np.einsum("rim,ij,rjm->r", X, ref.B, X)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7 * np.abs(expected).max())
