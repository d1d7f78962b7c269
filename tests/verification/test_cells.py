"""A unit passes with the estimators as they are, and fails with faults planted in them."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest
import torch

from specbp import logdets, polynomials
from specbp.methods import METHODS
from verification import cells, runner, units
from verification.cases import all_cases

CASE = all_cases()["spd/geometric-c1e4/n32"]


def run(method, case=CASE, dtype="float64"):
    view = case.build(getattr(torch, dtype)).views[method.on]
    unit = units.Unit(case, view, method, dtype, runner.check_level("standard"))
    oracle = units.Oracle(view, units.draw(case, getattr(torch, dtype), "tests"))
    return list(cells.run(unit, oracle))


def failing(records) -> set[str]:
    return {c["name"] for r in records for c in r["checks"] if c["verdict"] == "FAIL"}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_method_fails_and_each_counts_its_probes(name, dtype):
    records = run(METHODS[name], dtype=dtype)
    gated = METHODS[name].claims.gated
    assert not gated or not failing(records)
    assert [r["probes"] for r in records] == list(units.probe_counts(METHODS[name], CASE))
    assert len({r["id"] for r in records}) == len(records)


def test_the_plain_algorithm_is_reported_not_judged():
    records = run(METHODS["algorithm1_plain"])
    assert {r["verdict"] for r in records} == {"REPORTED"}
    # On this matrix ten power steps stop short of λ_max, and the polynomial explodes.
    assert max(r["rmse"] for r in records) > 1e3


def with_fault(name, wrap):
    method = METHODS[name]
    return dataclasses.replace(method, estimate=partial(wrap, method.estimate))


def scaled_value(estimate, *args, **kwargs):
    found = estimate(*args, **kwargs)
    return dataclasses.replace(found, samples=1.001 * found.samples)


def gaussian_probes(estimate, A, probes, **kwargs):
    g = torch.Generator().manual_seed(int(probes.double().sum().abs()) + probes.numel())
    return estimate(A, torch.randn(probes.shape, generator=g, dtype=probes.dtype), **kwargs)


def one_probe_short(estimate, A, probes, **kwargs):
    return estimate(A, torch.cat([probes[..., :-1], probes[..., :1]], -1), **kwargs)


def shifted_interval(estimate, A, probes, *, interval, **kwargs):
    return estimate(A, probes, interval=(interval[0] * 1.05, interval[1]), **kwargs)


def one_step_less(estimate, A, probes, *, num_steps, **kwargs):
    return estimate(A, probes, num_steps=num_steps - 1, **kwargs)


def wrong_sign(estimate, *args, **kwargs):
    found = estimate(*args, **kwargs)
    return dataclasses.replace(found, value=-found.value, samples=-found.samples)


@pytest.mark.parametrize(
    ("name", "fault", "killer"),
    [
        ("chebyshev", scaled_value, "probe"),
        ("chebyshev", gaussian_probes, "probe"),
        ("chebyshev", one_probe_short, "probe"),
        ("chebyshev", shifted_interval, "probe"),
        ("taylor", scaled_value, "probe"),
        ("slq", scaled_value, "probe"),
        ("slq", one_step_less, "probe"),
        ("slq", one_step_less, "matvecs"),
        ("golub_kahan", wrong_sign, "probe"),
        ("hutchinson", gaussian_probes, "probe"),
        ("hutchinson", one_probe_short, "probe"),
    ],
)
def test_planted_faults_are_caught(name, fault, killer):
    assert killer in failing(run(with_fault(name, fault)))


@pytest.mark.parametrize("name", ["qr", "cholesky", "eigenvalues"])
def test_an_inexact_exact_method_is_caught(name):
    def off(estimate, A, **kwargs):
        found = estimate(A, **kwargs)
        return dataclasses.replace(found, value=found.value + 1e-6)

    assert "exact" in failing(run(with_fault(name, off)))


def test_a_dropped_coefficient_is_caught(monkeypatch):
    whole = polynomials.chebyshev_coefficients

    def truncated(degree, lower, upper):
        found = whole(degree, lower, upper)
        found[..., -1] = 0
        return found

    monkeypatch.setattr(polynomials, "chebyshev_coefficients", truncated)
    assert "probe" in failing(run(METHODS["chebyshev"]))


def test_float32_accumulation_in_the_float64_path_is_caught(monkeypatch):
    combine = logdets._combine
    monkeypatch.setattr(logdets, "_combine", lambda seen, c: combine(seen, c).float().double())
    assert "probe" in failing(run(METHODS["chebyshev"]))


def test_an_explosion_of_the_safe_form_is_caught(monkeypatch):
    plain = dataclasses.replace(METHODS["algorithm1"], config=METHODS["algorithm1_plain"].config)
    assert "bracket" in failing(run(plain))


def test_a_failed_probe_fails_the_cell():
    def one_nan(estimate, A, probes, **kwargs):
        probes = probes.clone()
        probes[..., 0, 0] = float("nan")
        return estimate(A, probes, **kwargs)

    assert "status" in failing(run(with_fault("slq", one_nan)))
