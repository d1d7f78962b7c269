"""Stein's estimator against loops and closed forms; gradients of entropies against differences."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from specbp import generator_for
from verification.experiments import stein, stein_problems, stein_report
from verification.experiments.stein_score import (
    entropy_gradient,
    flat_gradient,
    median_bandwidth,
    stein_score,
)

f64 = torch.float64
LEVEL = 1e-6  # false-alarm rate of the statistical test below


def normal(*shape, key="draws"):
    return torch.randn(shape, generator=generator_for("stein tests", key), dtype=f64)


# The score ----------------------------------------------------------------------------------------


def slow_score(x, eta, h):
    """Kernel and its gradients pair by pair."""
    count = len(x)
    kernel, drift = torch.empty(count, count, dtype=f64), torch.zeros_like(x)
    for i in range(count):
        for j in range(count):
            y = x[j].clone().requires_grad_()
            kernel[i, j] = value = torch.exp(-(x[i] - y).square().sum() / (2 * h**2))
            drift[i] += torch.autograd.grad(value, y)[0]
    return -torch.linalg.inv(kernel.detach() + eta * torch.eye(count, dtype=f64)) @ drift


@pytest.mark.parametrize(("eta", "h"), [(0.1, 1.0), (1e-2, 0.3), (2.0, 5.0)])
def test_score_is_the_definition_done_slowly(eta, h):
    x = normal(9, 3)
    torch.testing.assert_close(stein_score(x, eta=eta, bandwidth=h), slow_score(x, eta, h))


@given(st.floats(0.1, 10), st.floats(-5, 5), st.floats(0, 6.2), st.booleans())
def test_score_follows_the_samples(scale, shift, angle, scaled):
    """Translated, turned and stretched samples have translated, turned and shrunk scores."""
    x = normal(30, 2)
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    turn = turn.double()
    y = scale * x @ turn + shift
    plain, moved = (
        stein_score(s, eta=0.1, bandwidth=median_bandwidth(s, scaled=scaled)) for s in (x, y)
    )
    torch.testing.assert_close(moved, plain @ turn / scale, rtol=1e-6, atol=1e-8)


def test_score_of_a_normal_gets_better_with_samples():
    errors = []
    for count in (100, 1600):
        x = normal(count, 2, key="normal")
        found = stein_score(x, eta=0.1, bandwidth=median_bandwidth(x, scaled=False))
        assert float(F.cosine_similarity(found.flatten(), -x.flatten(), dim=0)) > 0.85
        errors.append(float((found + x).norm() / x.norm()))
    assert errors[1] < 0.6 * errors[0]


def test_a_large_ridge_leaves_the_gradient_of_a_kernel_density():
    x, h, eta = normal(12, 2), 0.7, 1e9
    kernel = torch.exp(-torch.cdist(x, x).square() / (2 * h**2))
    drift = ((x.unsqueeze(1) - x) / h**2 * kernel.unsqueeze(-1)).sum(1)
    torch.testing.assert_close(
        eta * stein_score(x, eta=eta, bandwidth=h), -drift, rtol=1e-6, atol=0
    )


def test_median_bandwidth():
    x = normal(7, 3)
    pairs = [float((x[i] - x[j]).square().sum()) for i in range(7) for j in range(i)]
    assert float(median_bandwidth(x, scaled=False)) ** 2 == pytest.approx(np.median(pairs))
    ratio = float(median_bandwidth(x) / median_bandwidth(x, scaled=False))
    assert ratio**2 == pytest.approx(1 / (2 * math.log(8)))


def test_bad_input():
    x = normal(5, 2)
    for eta, h in ((0.0, 1.0), (1.0, 0.0), (-1.0, 1.0), (math.nan, 1.0)):
        with pytest.raises(ValueError, match="must be positive"):
            stein_score(x, eta=eta, bandwidth=h)
    with pytest.raises(ValueError, match="at least 2 samples"):
        median_bandwidth(x[:1])


# Gradients of entropies ---------------------------------------------------------------------------


def test_with_the_true_score_the_entropy_gradient_is_unbiased():
    problem = stein_problems.linear()
    L = problem.f.matrix.detach()
    found = []
    for z in normal(400, 50, 2, key="true score"):
        score = -torch.linalg.solve(L @ L.mT, (z @ L.mT).mT).mT
        found.append(entropy_gradient(problem.f, problem.parameters, z, score))
    g = torch.stack(found)
    scores = (g.mean(0) - problem.entropy) / (g.std(0) / 20)
    assert float(scores.abs().max()) < stats.norm.isf(LEVEL / (2 * 4))
    assert float(F.cosine_similarity(g.mean(0), problem.entropy, dim=0)) > 0.99


def test_flat_gradient_is_zero_where_nothing_depends():
    a, b = torch.ones(2, requires_grad=True), torch.ones(2, 1, requires_grad=True)
    assert flat_gradient((3 * a).sum(), [a, b]).tolist() == [3, 3, 0, 0]


def entropy(f, step):
    """E log |det J| on the grid, from the value alone."""
    z, weights = stein_problems.normal_grid(step)
    J = torch.func.vmap(torch.func.jacfwd(lambda p: f(p.unsqueeze(0))[0]))(z)
    return float((weights @ torch.linalg.slogdet(J).logabsdet).detach())


def difference(f, direction, reach, step):
    """Central difference of the entropy along a direction of the parameters."""
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            _move(f, sign * reach * direction)
        values.append(entropy(f, step))
        with torch.no_grad():
            _move(f, -sign * reach * direction)
    return (values[0] - values[1]) / (2 * reach)


def _move(f, change):
    sizes = [p.numel() for p in f.parameters()]
    for p, part in zip(f.parameters(), change.split(sizes), strict=True):
        p += part.reshape(p.shape)


def test_pathwise_gradient_of_the_linear_map_is_closed():
    problem = stein_problems.linear()
    found = stein_problems.pathwise_gradient(problem.f, problem.parameters, 0.5)
    torch.testing.assert_close(found, problem.entropy)


def test_smooth_problem_against_differences():
    problem = stein_problems.smooth(0.15)
    direction = normal(len(problem.entropy), key="direction")
    found = difference(problem.f, direction / direction.norm(), 1e-4, 0.15)
    exact = float(problem.entropy @ direction / direction.norm())
    assert found == pytest.approx(exact, rel=1e-4)
    assert problem.entropy_error < 0.01
    torch.testing.assert_close(problem.entropy, problem.pathwise)


def test_a_moving_kink_has_a_closed_form_that_autograd_misses():
    """f(z) = (a(z₁ − b), z₂) has entropy log(s) Φ(b) beyond that of z, so ∂H/∂b = log(s) φ(b)."""
    slope, b = 0.2, torch.tensor([0.3], dtype=f64, requires_grad=True)

    def shifted(activation):
        return lambda z: torch.cat([activation(z[:, :1] - b), z[:, 1:]], -1)

    sharp = shifted(lambda x: F.leaky_relu(x, slope))
    soft = shifted(lambda x: stein_problems.rounded_leaky_relu(x, slope, 0.1))
    exact = math.log(slope) * stats.norm.pdf(0.3)
    assert float(stein_problems.pathwise_gradient(soft, [b], 0.1)) == pytest.approx(exact, rel=0.02)
    assert float(stein_problems.pathwise_gradient(sharp, [b], 0.1)) == 0
    assert exact < -0.5


@pytest.fixture(scope="module")
def resnet():
    return stein_problems.resnet(0.1, 0.1)


def test_the_resnet_is_invertible_and_its_rounded_twin_close(resnet):
    z = normal(50, 2)
    assert resnet.notes["smallest_det"] > 0.1
    sharp, soft = resnet.f(z), stein_problems.rounded(resnet.f, z, 1e-6)
    torch.testing.assert_close(sharp, soft, rtol=0, atol=1e-5)


def test_differences_side_with_the_rounded_resnet_against_autograd(resnet):
    """Along the direction in which the two gradients differ most."""
    gap = resnet.entropy - resnet.pathwise
    direction = gap / gap.norm()
    found = difference(resnet.f, direction, 0.02, 0.06)
    whole, path = float(resnet.entropy @ direction), float(resnet.pathwise @ direction)
    assert whole - path > 1
    assert abs(found - whole) < 0.1 * (whole - path)


# The experiment -----------------------------------------------------------------------------------

TINY = replace(
    stein.QUICK, etas=(0.01,), stein_samples=(40, 80), spectral_samples=(10, 40), repeats=2
)


@pytest.fixture(scope="module")
def tiny(resnet):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stein_problems, "resnet", lambda *_: resnet)
        return stein.run(TINY, progress=False)


def test_exact_gradients_agree_with_jacfwd_and_are_exact_for_the_linear_map(tiny):
    assert stein_report.sound(tiny)
    known = stein_report.chosen(tiny, "gradient", problem="linear 2→2", method="qr_logdet")
    assert max(r["entropy_error"] for r in known) < 1e-12
    wrong = [{**r, "against_jacfwd": 1e-3} if r["kind"] == "problem" else r for r in tiny]
    assert not stein_report.sound(wrong)


def test_methods_see_the_same_samples_and_repeat(tiny):
    problem = stein_problems.linear()
    again = stein.measure(problem, "x", stein.stein(0.01, scaled=False), 80, TINY)
    name = "Stein, η = 0.01, h² = med"
    before = stein_report.chosen(tiny, "gradient", problem=problem.name, method=name, samples=80)[0]
    for key in ("entropy_error", "entropy_bias", "entropy_cosine", "products"):
        assert again[key] == before[key]
    assert 0 < before["entropy_error"] < 0.5


def test_the_bias_of_an_unbiased_estimator_is_its_noise():
    truth = normal(50, key="truth")
    found = [stein._errors(truth + normal(4, 50, key=i), truth, "x") for i in range(100)]
    bias, noise = (np.mean([r[f"x_{key}"] ** 2 for r in found]) for key in ("bias", "noise"))
    assert bias == pytest.approx(noise, rel=0.1)  # χ² of 5000 and 15000 degrees: sd 2 % and 1.2 %
    assert noise == pytest.approx(50 / 4 / float(truth.square().sum()), rel=0.08)
    shifted = stein._errors(truth * 6 + normal(4, 50, key=0), truth, "x")
    assert shifted["x_bias"] > 5 * shifted["x_noise"]


def test_equal_time_means_no_longer():
    rows = [
        {"kind": "gradient", "problem": "p", "method": "qr_logdet", "samples": k, "seconds": s}
        for k, s in ((10, 1.0), (20, 2.0), (30, 3.0))
    ]
    assert stein_report.within(rows, "p", "qr_logdet", 2.5)["samples"] == 20
    assert stein_report.within(rows, "p", "qr_logdet", 0.5) is None


def test_the_command_writes_a_page_its_figures_and_its_numbers(tiny, monkeypatch, tmp_path):
    monkeypatch.setattr(stein, "run", lambda _: tiny)
    assert stein.main(["--quick", "--out", str(tmp_path)]) == 0
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"README.md", "results.json", "stein.png", "cosine.png"}
    records = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert records[0]["kind"] == "provenance"
    assert "**Sound.**" in (tmp_path / "README.md").read_text(encoding="utf-8")
