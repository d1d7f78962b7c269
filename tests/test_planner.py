"""logdet to an asked error: every branch, budgets, memory, failures, and the errors it reaches."""

from __future__ import annotations

import pytest
import torch

from specbp.estimate import Status
from specbp.jacobian import Jacobian, JacobianMetric
from specbp.operators import CountingOperator
from specbp.plan_costs import Shape
from specbp.plan_runs import Batch
from specbp.planner import LOOKS, LOOSE_LOOKS, _Run
from tests.planner_support import Implicit, ImplicitFactor, ask, truth, well
from tests.support import f32, f64, factor, flags, geometric, normal, spd


@pytest.mark.parametrize("n", [1, 2, 5, 40])
def test_a_small_matrix_is_known_exactly(n):
    A = spd(geometric(n, 10.0)) if n > 1 else torch.full((1, 1), 3.0, dtype=f64)
    found = ask(A, rtol=0.01)
    assert found.plan.method == "cholesky"
    assert found.num_matvecs == 0
    assert found.plan.met
    assert float(found.value) == pytest.approx(float(truth(A)), abs=1e-10)


def test_a_jacobian_is_known_by_its_columns():
    z = normal(12)
    J = Jacobian(lambda x: torch.cat([x.sin(), x**3 + x], -1), z)
    exact = float(2 * torch.linalg.svdvals(J.dense()).log().sum())
    for operator in (J, JacobianMetric(J)):
        found = ask(operator, rtol=1e-3)
        assert found.plan.method == "qr"
        assert found.num_matvecs == 6
        assert float(found.value) == pytest.approx(exact, abs=1e-10)


def test_products_with_the_identity_where_nothing_else_is_exact():
    A = well(50)
    found = ask(Implicit(A), atol=1e-3)
    assert found.plan.method == "eigenvalues"
    assert found.num_matvecs == 50
    assert float(found.value) == pytest.approx(float(truth(A)), abs=1e-9)


def test_a_pilot_is_enough_for_a_loose_error():
    A = well(1500, 2.0)
    found = ask(Implicit(A), rtol=0.2)
    assert len(found.plan.shapes) == 1
    assert found.plan.method in ("slq", "block_slq")
    assert found.plan.met
    assert abs(float(found.value - truth(A))) <= float(found.plan.tolerance)


@pytest.mark.parametrize("asked", [{"rtol": 0.03}, {"atol": 12.0}, {"per_dimension": 0.03}])
def test_rounds_follow_until_the_error_is_reached(asked):
    A = well()
    found = ask(Implicit(A), max_bytes=10**6, **asked)  # 400² entries do not fit
    assert len(found.plan.shapes) > 1
    assert found.plan.met
    assert bool(found.plan.error <= found.plan.tolerance)
    assert abs(float(found.value - truth(A))) <= float(found.plan.tolerance)
    assert flags(found) & ~Status.INVARIANT_SUBSPACE == Status.OK


@pytest.mark.parametrize("method", ["J", "A"])
def test_asked_errors_are_met_on_nearly_all_seeds(method):
    J = factor(geometric(300, 3.0), 320)
    A = ImplicitFactor(J) if method == "J" else Implicit(J.mT @ J)
    exact, n = float(2 * torch.linalg.svdvals(J).log().sum()), 40
    found = [ask(A, seed, rtol=0.05, max_bytes=500_000) for seed in range(n)]
    wrong = sum(abs(float(f.value) - exact) > float(f.plan.tolerance) for f in found)
    assert wrong <= 5  # of 40 at 95 %: more have probability 0.014
    assert all(f.plan.met for f in found)


def test_missed_for_want_of_budget_and_said_so():
    A = spd(geometric(300, 1e4))
    found = ask(Implicit(A), rtol=1e-4, budget=60)
    assert not found.plan.met
    assert flags(found) & Status.TOLERANCE_MISSED
    assert "raise budget" in Status.TOLERANCE_MISSED.remedy
    assert "NOT met" in str(found.plan)
    assert bool(found.plan.error > found.plan.tolerance)


@pytest.mark.parametrize("budget", [15, 37, 60, 200, 299])
@pytest.mark.parametrize("sides", [1, 2])
def test_no_budget_is_exceeded_and_most_of_it_is_used(budget, sides):
    J = factor(geometric(600, 100.0), 600)
    A = CountingOperator(ImplicitFactor(J) if sides == 2 else Implicit(J.mT @ J))
    found = ask(JacobianMetric(A) if sides == 2 else A, rtol=1e-6, budget=budget)
    counted = A.num_gram_matvecs if sides == 2 else A.num_matvecs
    blocks = found.plan.shapes[-1].num_blocks
    assert found.num_matvecs <= budget
    assert counted <= found.num_matvecs == found.plan.num_matvecs
    assert counted * blocks >= found.num_matvecs
    assert found.num_matvecs >= 0.7 * budget - 3


@pytest.mark.parametrize("max_bytes", [1, 10**4, 10**5])
def test_forgetting_for_memory_does_not_exceed_the_budget(max_bytes):
    A = CountingOperator(Implicit(well(300, 100.0)))
    found = ask(A, rtol=1e-6, budget=150, max_bytes=max_bytes)
    assert A.num_matvecs <= found.num_matvecs <= 150
    assert not found.plan.met


def test_two_hundred_products_are_spent_in_one_good_shape():
    n, errors = 1000, []
    lam = 10 ** (-4 * torch.rand(n, generator=torch.Generator().manual_seed(1), dtype=f64))
    A = torch.diag(lam)
    for seed in range(6):
        found = ask(Implicit(A), seed, rtol=1e-3, budget=200)
        assert 180 <= found.num_matvecs <= 200
        errors.append(float(found.value - lam.log().sum()))
    assert (sum(e * e for e in errors) / len(errors)) ** 0.5 < 70  # 50 is promised; 6 seeds only


@pytest.mark.parametrize("budget", [0, 1, 2, 14])
def test_a_budget_below_any_estimate_is_refused(budget):
    with pytest.raises(ValueError, match="allows neither the exact answer nor an estimate"):
        ask(Implicit(well(100)), rtol=0.01, budget=budget)


def test_memory_too_small_for_j_leaves_estimates():
    J = factor(geometric(200, 2.0), 1000)
    found = ask(ImplicitFactor(J), rtol=0.1, max_bytes=1000 * 200 * 8)
    assert found.plan.method in ("golub_kahan", "block_golub_kahan")
    assert ask(ImplicitFactor(J), rtol=1e-3, max_bytes=1000 * 200 * 16).plan.method == "qr"


def test_little_memory_gives_the_same_in_smaller_pieces(monkeypatch):
    A, sizes = well(300, 3.0), []
    real = Batch.run
    monkeypatch.setattr(
        Batch, "run", lambda self, k: sizes.append(k * self.rows.numel()) or real(self, k)
    )
    limit = 40_000
    found = ask(Implicit(A), rtol=0.05, max_bytes=limit)
    assert found.plan.met
    # A basis, its images and their copies, 8 bytes each; one probe is the least there is.
    assert max(sizes) * 8 * 2 <= max(limit, 2 * 8 * 300 * found.plan.shapes[-1].num_steps)


def test_batches_of_operators_are_answered_together():
    A = torch.stack([well(200, 2.0), well(200, 4.0)])
    exact = ask(A, rtol=0.01)
    assert exact.value.shape == (2,)
    assert torch.allclose(exact.value, truth(A))
    found = ask(Implicit(A), rtol=0.1, max_bytes=10**5)
    assert found.value.shape == found.plan.tolerance.shape == (2,)
    assert bool(((found.value - truth(A)).abs() <= 2 * found.plan.tolerance).all())
    assert found.plan.met


def test_float32_gives_float64_values():
    J = factor(geometric(300, 3.0), 320)
    single, double = (
        ask(ImplicitFactor(J.to(dtype)), rtol=0.05, max_bytes=10**5) for dtype in (f32, f64)
    )
    assert single.value.dtype == f64
    assert float(single.value) == pytest.approx(float(double.value), abs=1e-2)


def test_the_generator_decides_everything():
    A = Implicit(well())
    a, b, c = (ask(A, key, rtol=0.05, max_bytes=10**6) for key in (1, 1, 2))
    assert float(a.value) == float(b.value)
    assert a.plan.shapes == b.plan.shapes
    assert float(a.value) != float(c.value)


@pytest.mark.parametrize("looks", [LOOKS, LOOSE_LOOKS])
def test_the_union_of_all_looks_is_paid_for(looks):
    assert sum(looks) <= 1 + 1e-12
    assert min(looks) > 0


def test_every_look_uses_its_share(monkeypatch):
    levels = []
    real = _Run._level
    monkeypatch.setattr(
        _Run, "_level", lambda self, share: levels.append(share) or real(self, share)
    )
    ask(Implicit(well()), rtol=0.01, max_bytes=10**6)
    assert sum(set(levels)) <= 1 + 1e-12


@pytest.mark.parametrize("method", ["slq", "golub_kahan", "block_slq", "krylov_aware", "cholesky"])
def test_methods_by_name_draw_their_own_law(method):
    J = factor(geometric(40, 2.0), 50)
    A = JacobianMetric(J) if method == "golub_kahan" else J.mT @ J
    A = (A + A.mT) / 2 if method != "golub_kahan" else A
    found = ask(A, method=method, num_probes=20)
    exact = float(2 * torch.linalg.svdvals(J).log().sum())
    assert float(found.value) == pytest.approx(exact, abs=8)


def test_config_reaches_the_method():
    found = ask(well(60), method="slq", num_probes=3, num_steps=7)
    assert found.num_matvecs == 21


@pytest.mark.parametrize("method", ["magic", "hutchinson"])
def test_unknown_methods_are_refused(method):
    with pytest.raises(ValueError, match='method is "auto" or one of'):
        ask(well(5), method=method)


def test_config_of_a_method_is_not_taken_by_auto():
    with pytest.raises(ValueError, match=r"\['num_steps'\] belong to a method"):
        ask(well(5), num_steps=3)


def test_too_few_probes_for_a_method_are_refused():
    with pytest.raises(ValueError, match="needs 2 probes, got 1"):
        ask(well(20), method="krylov_aware", num_probes=1)


def test_a_plan_can_be_read():
    found = ask(Implicit(well()), rtol=0.05, max_bytes=10**6)
    lines = str(found.plan).splitlines()
    assert lines[0].startswith("Pilot: ")
    assert lines[-1].endswith("products.")
    assert all(isinstance(shape, Shape) for shape in found.plan.shapes)
    assert found.num_matvecs == found.plan.num_matvecs
