"""The kit on estimators of other libraries, as released: what they promise holds, or is found out.

Neither library is a dependency. With their wheels beside this environment (`pip install --no-deps
curvlinops-for-pytorch backpack-for-pytorch einops einconv unfoldNd linear_operator jaxtyping
wadler-lindig`) nothing here is skipped; --no-deps keeps pip from replacing torch.
"""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType

import pytest
import torch
from torch import Tensor

from specbp import generator_for
from specbp.testing import (
    assert_calibrated,
    assert_reproducible,
    assert_unbiased,
    assert_variance,
    captured_probes,
    first_block,
    law_checks,
    recognise_law,
)
from specbp.testing.blackbox import isolated_rng
from specbp.testing.capture import recording_tensor
from specbp.testing.outcome import Level
from tests.support import geometric, spd

n = 20
A = spd(geometric(n, 10.0))
TRACE = float(A.trace())


def foreign(name: str) -> ModuleType:
    """The module, or a skipped test; its own deprecation warnings are not ours."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed, see the top of this file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


# curvlinops: trace estimators that draw from the global generator ---------------------------------

BUDGETS = {"hutchinson_trace": 4, "hutchpp_trace": 6, "xtrace": 8}


@pytest.fixture(params=BUDGETS)
def estimator(request):
    function = getattr(foreign("curvlinops"), request.param)
    return lambda A: function(A, BUDGETS[request.param])


def test_curvlinops_draws_rademacher_probes_afresh(estimator):
    probes = captured_probes(estimator, A, calls=300, key=("curvlinops",)).mT.reshape(-1, n)
    assert recognise_law(probes) == "rademacher"
    checks = law_checks(probes, "rademacher", Level(alpha=1e-3, margin=0.3))
    assert "FAIL" not in {check.verdict for check in checks}
    assert assert_reproducible(estimator, A).verdict == "PASS"


def test_curvlinops_is_unbiased(estimator):
    check = assert_unbiased(estimator, A, TRACE, law=None, margin=0.25)
    assert check.verdict == "PASS"
    with pytest.raises(AssertionError, match="FAIL S1 mean"):
        assert_unbiased(lambda A: 1.1 * estimator(A), A, TRACE, law=None, margin=0.25)


def test_curvlinops_hutchinson_is_exact_on_its_own_probes():
    """With the probes caught, the value is compared to rounding: no sampling is left."""
    hutchinson = foreign("curvlinops").hutchinson_trace
    for seed in range(5):
        recorder = recording_tensor(A)
        with isolated_rng(seed):
            value = float(hutchinson(recorder, 4))
        X = first_block(recorder.record)
        assert value == pytest.approx(float((X * (A @ X)).sum() / 4), rel=1e-13)


def test_curvlinops_hutchinson_has_the_variance_of_signs():
    hutchinson = foreign("curvlinops").hutchinson_trace

    def normal(A: Tensor) -> Tensor:
        return hutchinson(A, 4, distribution="normal")

    options = {"num_probes": 4, "draws": True, "margin": 0.5}
    assert assert_variance(lambda A: hutchinson(A, 4), A, A, **options).verdict == "PASS"
    assert assert_variance(normal, A, A, law="gaussian", **options).verdict == "PASS"
    with pytest.raises(AssertionError, match="FAIL S2 variance"):
        assert_variance(normal, A, A, **options)


# linear_operator: a log-determinant whose defaults are biased -------------------------------------


def kernel(size: int, noise: float) -> Tensor:
    """An RBF kernel matrix on points of the unit square."""
    x = torch.rand(size, 2, generator=generator_for("foreign", size), dtype=torch.float64)
    return (-torch.cdist(x, x).square() / 0.02).exp() + noise * torch.eye(size).double()


def logdet(A: Tensor, **settings: float) -> Tensor:
    """Stochastic Lanczos quadrature whatever the size; further settings by name."""
    library = foreign("linear_operator")
    with library.settings.max_cholesky_size(0):
        managers = [getattr(library.settings, name)(value) for name, value in settings.items()]
        for manager in managers:
            manager.__enter__()
        try:
            return library.to_linear_operator(A).inv_quad_logdet(logdet=True)[1]
        finally:
            for manager in reversed(managers):
                manager.__exit__()


PLAIN = {"max_preconditioner_size": 0}
DEEP = PLAIN | {"max_lanczos_quadrature_iterations": 60, "cg_tolerance": 1e-5}


def test_linear_operator_normalises_gaussian_probes():
    """Normalised Gaussian probes are uniform on the sphere: their product with A shows it."""
    K = kernel(60, 1e-1)
    probes = captured_probes(lambda A: logdet(A, **PLAIN), K, calls=60, key=("lo",))
    flat = probes.mT.reshape(-1, 60)
    assert recognise_law(flat) == "sphere"
    checks = law_checks(flat, "sphere", Level(alpha=1e-3, margin=0.5), up_to_scale=True)
    assert "FAIL" not in {check.verdict for check in checks}
    assert assert_reproducible(lambda A: logdet(A, **PLAIN), K).verdict == "PASS"


def test_linear_operator_defaults_are_biased_on_an_ill_conditioned_kernel():
    K = kernel(100, 1e-3)
    with pytest.raises(AssertionError, match="FAIL S1 mean") as caught:
        assert_unbiased(logdet, K, float(torch.logdet(K)), law=None, replicates=100)
    assert "a bias of the method itself" in str(caught.value)


def test_linear_operator_is_unbiased_when_it_is_asked_for_accuracy():
    K = kernel(40, 1e-3)
    options = {"law": None, "replicates": 400, "margin": 0.5}
    exact = float(torch.logdet(K))
    check = assert_unbiased(lambda A: logdet(A, **DEEP), K, exact, **options)
    assert check.verdict == "PASS"


def test_linear_operator_has_no_error_bars():
    foreign("linear_operator")
    with pytest.raises(AssertionError, match="have no se"):
        assert_calibrated(logdet, kernel(20, 1.0), law=None, replicates=10)
