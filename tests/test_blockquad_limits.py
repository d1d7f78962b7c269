"""The block estimators where they end: few probes, closed spaces, float32, failures, coverage."""

from __future__ import annotations

import pytest
import torch

from specbp.blockquad import block_golub_kahan_logdet, block_slq_logdet
from specbp.estimate import Status
from specbp.operators import CountingOperator
from tests.support import (
    f32,
    f64,
    factor,
    flags,
    geometric,
    log_forms_of_factor,
    normal,
    orthonormal,
    signs,
    spd,
)

ESTIMATORS = {
    "A": lambda J, X, **config: block_slq_logdet(J.mT @ J, X, **config),
    "J": lambda J, X, **config: block_golub_kahan_logdet(J, X, **config),
}
either = pytest.mark.parametrize("on", list(ESTIMATORS))
FAILED = ("value", "standard_error")


def symmetric(eigenvalues, dtype=f64):
    return spd(eigenvalues).to(dtype)


# Few probes, few steps ----------------------------------------------------------------------------


@either
def test_one_probe_has_its_gauss_value_and_no_error_bar(on):
    J, X = factor(geometric(40, 5.0), 50), signs(40, 1)
    found = ESTIMATORS[on](J, X, num_steps=8)
    assert float(found.value) == pytest.approx(float(log_forms_of_factor(J, X)), abs=0.5)
    assert torch.isnan(found.standard_error)
    assert torch.isfinite(found.truncation)
    assert flags(found) == Status.OK


@either
def test_two_probes_claim_no_error_bar(on):
    J, X = factor(geometric(40, 5.0), 50), signs(40, 2)
    found = ESTIMATORS[on](J, X, num_steps=8)
    assert torch.isfinite(found.value)
    assert torch.isnan(found.standard_error)
    assert torch.isnan(found.interval().lower)


@either
@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("extrapolate", [False, True])
def test_too_few_steps_to_extrapolate_say_so(on, k, extrapolate):
    J, X = factor(geometric(40, 5.0), 50), signs(40, 4)
    found = ESTIMATORS[on](J, X, num_steps=k, extrapolate=extrapolate)
    assert float(found.truncation) == torch.inf
    assert float(found.value) == pytest.approx(float(found.samples.mean()))
    low, high = found.interval()
    assert float(low) == -torch.inf
    assert torch.isfinite(high)


@either
def test_equal_probes_and_a_zero_probe(on):
    J, X = factor(geometric(40, 5.0), 50), signs(40, 5)
    X[:, 1] = X[:, 0]
    X[:, 4] = 0
    found = ESTIMATORS[on](J, X, num_steps=8, groups=5)
    assert flags(found) == Status.OK
    assert torch.isfinite(found.samples).all()


# Products -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("s", "steps", "k"), [(4, 6, 6), (4, 40, 10), (1, 7, 7), (41, 3, 1)])
def test_products_counted(s, steps, k):
    J, X = CountingOperator(factor(geometric(40, 5.0), 50)), normal(40, s)
    assert block_golub_kahan_logdet(J, X, num_steps=steps).num_matvecs == (k - 0.5) * s
    assert (J.num_matvecs, J.mT.num_matvecs) == (k * s, (k - 1) * s)
    assert block_golub_kahan_logdet(J, X, num_steps=steps, lower=1e-3).num_matvecs == k * s
    A = CountingOperator(spd(geometric(40, 5.0)))
    assert block_slq_logdet(A, X, num_steps=steps).num_matvecs == A.num_matvecs == k * s


# Batches ------------------------------------------------------------------------------------------


@either
@pytest.mark.parametrize("s", [4, 7])
def test_batch_equals_single_calls(on, s):
    J = torch.stack([factor(v.sqrt(), 30) for v in (geometric(24, 9.0), torch.full((24,), 0.3))])
    X = normal(3, 24, s)
    X[1, :, 2] = X[1, :, 0]
    lower = torch.tensor([[0.1], [0.2]], dtype=f64)
    whole = ESTIMATORS[on](J.double().unsqueeze(1), X, num_steps=3, lower=lower, groups=3)
    assert whole.value.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            one = ESTIMATORS[on](J[i].double(), X[j], num_steps=3, lower=lower[i, 0], groups=3)
            for name in ("value", "standard_error", "lower", "upper", "truncation", "samples"):
                left, right = getattr(whole, name)[i, j], getattr(one, name)
                torch.testing.assert_close(left, right, rtol=1e-7, atol=1e-8, msg=name)
            assert int(whole.status[i, j]) == int(one.status)
    assert whole.num_matvecs == one.num_matvecs


@either
def test_failed_item_leaves_the_others_alone(on):
    J, X = factor(geometric(20, 9.0), 30).repeat(3, 1, 1), signs(20, 4)
    sound = ESTIMATORS[on](J, X, num_steps=4)
    J[1, 3, 4] = torch.nan
    found = ESTIMATORS[on](J, X, num_steps=4)
    assert Status(int(found.status[1])) & Status.NONFINITE
    assert torch.isnan(found.value[1])
    assert float(found.lower[1]) == -torch.inf
    torch.testing.assert_close(found.value[::2], sound.value[::2])
    torch.testing.assert_close(found.standard_error[::2], sound.standard_error[::2])


# Failures -----------------------------------------------------------------------------------------


@either
@pytest.mark.parametrize("dtype", [f32, f64])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("k", [1, 4, 20])
def test_product_that_is_not_finite(on, dtype, value, k):
    J, X = factor(geometric(20, 9.0), 30).to(dtype), signs(20, 4, dtype=dtype)
    J[2, 5] = value
    found = ESTIMATORS[on](J, X, num_steps=k)
    assert flags(found) & Status.NONFINITE
    for name in FAILED:
        assert torch.isnan(getattr(found, name))


@pytest.mark.parametrize("dtype", [f32, f64])
def test_indefinite_matrix(dtype):
    A = symmetric(torch.linspace(-1, 2, 30, dtype=f64), dtype)
    found = block_slq_logdet(A, signs(30, 4, dtype=dtype), num_steps=6)
    assert flags(found) & Status.NEGATIVE_RITZ
    assert torch.isnan(found.value)


@pytest.mark.parametrize("dtype", [f32, f64])
@pytest.mark.parametrize("k", [1, 5])
def test_asymmetric_matrix(dtype, k):
    skew = normal(30, 30, seed=5)
    A = (spd(geometric(30, 5.0)) + 0.01 * (skew - skew.mT)).to(dtype)
    found = block_slq_logdet(A, signs(30, 4, dtype=dtype), num_steps=k)
    assert flags(found) & Status.NONSYMMETRIC
    assert torch.isnan(found.value)


def test_operator_that_changes_from_call_to_call():
    class Noisy:
        matrix, calls = spd(geometric(40, 5.0)), 0
        shape, dtype, device = matrix.shape, matrix.dtype, matrix.device

        def __matmul__(self, X):
            self.calls += 1
            return self.matrix @ X + 1e-4 * normal(*X.shape, seed=self.calls)

    found = block_slq_logdet(Noisy(), signs(40, 4), num_steps=5)
    assert flags(found) & Status.NONSYMMETRIC
    assert torch.isnan(found.value)


@either
@pytest.mark.parametrize("dtype", [f32, f64])
@pytest.mark.parametrize("k", [10, 30])
def test_singular_matrix_has_no_finite_log_det(on, dtype, k):
    sigma = torch.linspace(1, 2, 30, dtype=f64)
    sigma[0] = 0
    found = ESTIMATORS[on](factor(sigma, 40).to(dtype), signs(30, 4, dtype=dtype), num_steps=k)
    bad = Status.SINGULAR | (Status.NEGATIVE_RITZ if on == "A" else Status.OK)
    assert flags(found) & bad
    assert not bool(found.ok)
    assert not torch.isfinite(found.value)


@either
def test_singular_matrix_before_its_null_vector_is_found(on):
    """The smallest Ritz value is still above zero: nothing bounds the value from below."""
    sigma = torch.linspace(1, 2, 200, dtype=f64)
    sigma[0] = 0
    found = ESTIMATORS[on](factor(sigma, 220), signs(200, 4), num_steps=5)
    assert float(found.interval().lower) == -torch.inf or not bool(found.ok)


@either
def test_zero_matrix(on):
    found = ESTIMATORS[on](torch.zeros(9, 9, dtype=f64), signs(9, 4), num_steps=3)
    assert flags(found) & Status.SINGULAR
    assert float(found.value) == -torch.inf


@either
def test_bad_input_is_refused(on):
    J, X = factor(geometric(10, 5.0), 12), signs(10, 4)
    for groups in (1, 0, -3):
        with pytest.raises(ValueError, match=f"at least 2 groups, got groups = {groups}"):
            ESTIMATORS[on](J, X, num_steps=3, groups=groups)
    for steps in (0, 11):
        with pytest.raises(ValueError, match="num_steps must be between 1 and n = 10"):
            ESTIMATORS[on](J, X, num_steps=steps)
    with pytest.raises(TypeError, match="float32"):
        ESTIMATORS[on](J, X.float(), num_steps=3)
    with pytest.raises(ValueError, match="lower must be a positive"):
        ESTIMATORS[on](J, X, num_steps=3, lower=-1.0)
    with pytest.raises(ValueError, match="At least one probe"):
        ESTIMATORS[on](J, X[:, :0], num_steps=3)


def test_wide_factor_is_refused():
    with pytest.raises(ValueError, match="fewer rows than columns"):
        block_golub_kahan_logdet(torch.ones(3, 5), torch.ones(5, 2), num_steps=2)


# float32 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "rows", "s", "k"), [(60, 60, 5, 12), (200, 210, 8, 25), (50, 300, 3, 9)]
)
def test_float32_factor_of_condition_1e8_loses_a_thousandth_of_a_nat(n, rows, s, k):
    J, X = factor(geometric(n, 1e4), rows).to(f32), signs(n, s, dtype=f32)
    for steps in (k, n):
        config = {"num_steps": steps, "extrapolate": False}
        short = block_golub_kahan_logdet(J, X, **config)
        long = block_golub_kahan_logdet(J.double(), X.double(), **config)
        assert abs(float(short.value - long.value)) <= 1e-3
        assert float(short.standard_error) == pytest.approx(float(long.standard_error), rel=1e-3)


@either
@pytest.mark.parametrize("dtype", [f32, f64])
@pytest.mark.parametrize("name", ["three", "low rank and noise"])
def test_error_bar_holds_when_the_spaces_close(on, dtype, name):
    """Rounding must not lead the others' space on into the probe's own: samples would agree."""
    n = 120
    spectra = {
        "three": torch.tensor([1.0, 0.3, 0.1], dtype=f64).repeat(n // 3),
        "low rank and noise": torch.cat(
            [torch.logspace(1, 0, 4, dtype=f64), torch.full((n - 4,), 0.1, dtype=f64)]
        ),
    }
    J = factor(spectra[name].sqrt(), n).to(dtype)
    X = signs(60, n, 5, seed=4, dtype=dtype)
    found = ESTIMATORS[on](J, X, num_steps=12)
    truth = float(spectra[name].log().sum())
    error = found.value - truth
    assert float((found.standard_error**2).mean()) >= 0.5 * float((error**2).mean())


# Coverage -----------------------------------------------------------------------------------------

SPECTRA = {
    "geometric": geometric(150, 100.0),
    "uniform": torch.linspace(0.1, 1, 150, dtype=f64),
    "power law": torch.arange(1, 151, dtype=f64) ** -1.5,
    "kernel": torch.cat([torch.logspace(2, -1, 30, dtype=f64), torch.full((120,), 0.1, dtype=f64)]),
    "clusters": torch.cat([1 + 0.01 * normal(75), 0.1 * (1 + 0.01 * normal(75, seed=1))]),
}


# Where the spaces of the others hold all but noise, terms of pairs of probes remain, which the
# error bar counts once instead of twice.
FLOOR = {"kernel": 0.5}


@pytest.mark.parametrize("name", list(SPECTRA))
def test_error_bar_is_no_smaller_than_the_error_and_covers(name):
    replicates, values = 200, SPECTRA[name]
    A = (orthonormal(150, 150) * values) @ orthonormal(150, 150).mT
    X = signs(replicates, 150, 6, seed=12)
    found = block_slq_logdet((A + A.mT) / 2, X, num_steps=10)
    truth = float(values.log().sum())
    assert float((found.standard_error**2).mean() / found.value.var()) >= FLOOR.get(name, 0.85)
    low, high = found.interval(0.95)
    covered = float(((low <= truth) & (truth <= high)).double().mean())
    assert covered >= 0.93 - 3 * (0.93 * 0.07 / replicates) ** 0.5


def test_square_gaussian_factor_is_covered():
    """Its truncation falls like 1 / k: what extrapolation does not find must be in the interval."""
    J = normal(150, 150, seed=5) / 150**0.5
    found = block_golub_kahan_logdet(J, signs(100, 150, 5, seed=6), num_steps=8)
    truth = float(2 * torch.linalg.svdvals(J).log().sum())
    low, high = found.interval(0.95)
    assert float(((low <= truth) & (truth <= high)).double().mean()) >= 0.9
