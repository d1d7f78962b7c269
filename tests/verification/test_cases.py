"""The grid is what it says: frozen ids, honest truths, the sizes and probes promised."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from verification import units
from verification.cases import DTYPES, SIZES, TIERS, all_cases, of_tier

SMALL = [case for case in all_cases().values() if case.n <= 64]


def test_the_grid_covers_what_is_promised():
    cases = of_tier("standard")
    spd = [case for case in cases if case.family == "spd"]
    assert SIZES == (2, 8, 32, 128, 512, 1024)
    assert len({case.spectrum for case in spd}) >= 5
    assert {(c.spectrum, c.n) for c in spd} == {(c.spectrum, n) for c in spd for n in SIZES}
    assert {case.family for case in cases} == {"spd", "kernel", "laplacian", "jacobian"}
    assert units.PROBE_COUNTS == (1, 4, 16, 64)
    assert set(DTYPES) == {"float32", "float64"}


def test_tiers_are_nested():
    sizes = [{case.id for case in of_tier(tier)} for tier in TIERS]
    assert sizes[0] < sizes[1] <= sizes[2]
    with pytest.raises(ValueError, match="tier is one of smoke, standard, full"):
        of_tier("nightly")


def test_probes_fill_the_widest_block_evenly():
    for case in all_cases().values():
        assert case.num_probes % (units.WIDEST * len(units.PROBE_COUNTS)) == 0


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.id)
@pytest.mark.parametrize("dtype", DTYPES)
def test_each_view_is_its_eigendecomposition(case, dtype):
    """The oracle's eigenpairs reproduce products with the very operator the estimators get."""
    for on, view in case.build(DTYPES[dtype]).views.items():
        n = case.n
        X = torch.eye(n, dtype=DTYPES[dtype])
        product = view.operator @ X
        if on == "J":
            product = view.operator.mT @ product
        A = (view.eigenvectors * view.eigenvalues) @ view.eigenvectors.T
        scale = view.eigenvalues.max()
        # A network's float32 Jacobian carries the rounding of some twenty layers of products.
        limit = 100 * n**0.5 * np.finfo(dtype).eps * scale
        assert np.abs(product.double().numpy() - A).max() <= limit
        assert view.truth.n == n
        logs = np.log(view.eigenvalues).sum()
        assert abs(view.truth.value - logs) <= 2 * view.truth.u_truth + 1e-12


def test_precisions_share_their_probes():
    case = all_cases()["spd/clusters/n32"]
    single, double = (units.draw(case, dtype, "e") for dtype in DTYPES.values())
    assert torch.equal(single.double(), double)
    assert not torch.equal(double, units.draw(case, torch.float64, "f"))
