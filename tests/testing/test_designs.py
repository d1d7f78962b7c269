"""Every design is exact for what it says, against naive twins, and for nothing that it does not."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from specbp import exact
from specbp.testing import designs
from specbp.testing.designs import Design
from tests import support

f64 = torch.float64


def form(n: int, seed: int = 0) -> torch.Tensor:
    B = support.normal(n, n, seed=seed)
    return B + B.mT


def values(design: Design, B: torch.Tensor) -> torch.Tensor:
    """xᵀBx of each column, averaged over the columns of a block."""
    X = design.columns
    return ((B @ X) * X).sum(0).reshape(len(design.weights), -1).mean(-1)


def rounding(B: torch.Tensor) -> float:
    """Of a form and, squared, of its square: n² products of entries of size 1."""
    return 4 * len(B) * 2.0**-52 * float(B.abs().sum())


def spread(B: torch.Tensor) -> float:
    return rounding(B) * float(B.abs().sum())


ALL = [
    designs.all_signs(5),
    designs.sign_multisets(4, 2),
    designs.sign_tuples(3, 2),
    designs.hadamard_basis(8),
    designs.identity_basis(6),
    designs.haar_basis(7, generator=support.generator(1)),
    designs.orthogonal_array(11),
    designs.sphere_design(11),
]


@pytest.mark.parametrize("design", ALL)
def test_weights_are_probabilities_and_probes_isotropic(design):
    R, n, m = design.probes.shape
    assert design.probes.dtype == design.weights.dtype == f64
    assert design.weights.shape == (R,)
    assert (design.weights > 0).all()
    assert abs(float(design.weights.sum()) - 1) < 1e-14
    second = torch.einsum("r,rim,rjm->ij", design.weights, design.probes, design.probes) / m
    assert (second - torch.eye(n, dtype=f64)).abs().max() < 1e-14 * n
    assert (design.probes.square().sum(-2) - n).abs().max() < 1e-13 * n


def test_columns_keep_the_order_of_outcomes_and_probes():
    design = designs.sign_multisets(3, 2)
    columns = [design.probes[r, :, j] for r in range(len(design.weights)) for j in range(2)]
    assert torch.equal(design.columns, torch.stack(columns, 1))


def test_moments_of_a_design_are_those_of_its_distribution():
    design = Design(torch.ones(3, 1, 1, dtype=f64), torch.tensor([0.5, 0.25, 0.25], dtype=f64))
    assert design.mean(np.array([0.0, 4.0, 8.0])) == 3.0
    assert design.variance(torch.tensor([0.0, 4.0, 8.0], requires_grad=True)) == 11.0
    assert math.isnan(design.mean([1.0, math.nan, 1.0]))
    with pytest.raises(ValueError, match=r"shape \(3,\), one per outcome; got \(2,\)"):
        design.mean([1.0, 2.0])


def test_all_signs_are_those_of_the_naive_twin():
    assert rows(designs.all_signs(6).columns) == rows(support.all_signs(6))


def rows(columns: torch.Tensor) -> list[tuple[float, ...]]:
    """Columns as a sorted list, each with first entry positive."""
    return sorted(tuple((x * x[0].sign()).tolist()) for x in columns.mT)


@pytest.mark.parametrize(("n", "m"), [(3, 2), (3, 4), (4, 3)])
def test_multisets_have_the_law_of_ordered_tuples(n, m):
    """A function of the probes jointly, neither linear nor even a mean of single values."""
    B = form(n)

    def joint(design: Design) -> torch.Tensor:
        gram = design.probes.mT @ B @ design.probes
        return torch.linalg.eigvalsh(gram)[..., -1] + gram.abs().sum((-1, -2))

    multisets, tuples = designs.sign_multisets(n, m), designs.sign_tuples(n, m)
    assert len(tuples.weights) == 2 ** ((n - 1) * m)
    assert len(multisets.weights) == math.comb(2 ** (n - 1) + m - 1, m)
    for moment in ("mean", "variance"):
        one, other = (getattr(d, moment)(joint(d)) for d in (multisets, tuples))
        assert one == pytest.approx(other, rel=1e-12)


def test_multinomial_weights_by_counting():
    index, weights = designs.multisets(4, 3)
    drawn = [tuple(sorted(t)) for t in itertools.product(range(4), repeat=3)]
    assert [drawn.count(tuple(row)) / 64 for row in index.tolist()] == weights.tolist()


def test_multisets_give_the_variance_of_a_mean():
    B, design = form(5), designs.sign_multisets(5, 3)
    law = exact.moments(B, "rademacher")
    assert abs(design.mean(values(design, B)) - law.mean) < rounding(B)
    assert abs(design.variance(values(design, B)) - law.variance / 3) < spread(B)


@pytest.mark.parametrize(("n", "m"), [(21, 2), (64, 3), (7, 5), (0, 1), (3, 0)])
@pytest.mark.parametrize("make", [designs.sign_multisets, designs.sign_tuples])
def test_too_many_outcomes_are_refused(make, n, m):
    message = rf"at most 1000000 outcomes; n = {n}, m = {m} have .* Take a smaller"
    with pytest.raises(ValueError, match=message):
        make(n, m)


@pytest.mark.parametrize(
    "make",
    [
        designs.identity_basis,
        designs.hadamard_basis,
        lambda n: designs.haar_basis(n, generator=support.generator(3)),
    ],
)
def test_bases_have_the_exact_mean_of_value_and_gradient(make):
    n = 64
    design, B = make(n), form(n)
    assert len(design.weights) == n
    assert abs(design.mean(values(design, B)) - float(B.trace())) < rounding(B)
    free = B.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(values(design, free).mean(), free)
    assert (gradient - torch.eye(n, dtype=f64)).abs().max() < 1e-13


def test_hadamard_basis_is_sylvesters():
    assert torch.equal(designs.hadamard_basis(16).columns, support.hadamard(16))
    with pytest.raises(ValueError, match="got 12; take haar_basis"):
        designs.hadamard_basis(12)


def test_haar_basis_draws_from_its_generator_only():
    first, again, other = (
        designs.haar_basis(5, generator=support.generator(seed)).probes for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_the_array_is_that_of_the_naive_twin():
    """The twin goes through traces in GF(64); the two enumerate one code in different orders."""
    assert rows(designs.orthogonal_array(64).columns) == rows(support.strength_five_array())


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_strength_five(k):
    """All products of up to five different coordinates vanish on the array and its negatives."""
    n = 2**k
    X = designs.orthogonal_array(n).columns.to(torch.int64).numpy()
    assert X.shape == (n, n * n)
    for order in (2, 4):  # odd orders cancel between the array and its negatives
        if order <= n:
            subsets = np.array(list(itertools.combinations(range(n), order)))
            assert not X[subsets].prod(1).sum(-1).any()
    if k == 4:  # and not more than five
        assert any(X[list(six)].prod(0).sum() for six in itertools.combinations(range(n), 6))


@pytest.mark.parametrize("k", [3, 4, 5, 6, 7])
def test_strength_five_where_there_are_too_many_subsets(k):
    """The rows are a linear code, so Σ x_a x_b x_c x_d vanishes unless x_a x_b = x_c x_d always.

    It is enough that all products of two coordinates differ, as they do on a few rows already.
    """
    X = designs.orthogonal_array(2**k).columns
    assert not (X @ X.mT - X.shape[1] * torch.eye(2**k, dtype=f64)).any()
    few = torch.randint(X.shape[1], (50,), generator=support.generator(k))
    bits = (X[:, few] < 0).to(torch.int64) @ 2 ** torch.arange(50)
    a, b = torch.combinations(torch.arange(2**k)).mT
    assert len(torch.unique(bits[a] ^ bits[b])) == len(a)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 33, 61, 64, 125])
def test_array_has_the_exact_mean_and_variance(n):
    design, B = designs.orthogonal_array(n), form(n)
    law = exact.moments(B, "rademacher")
    assert abs(design.mean(values(design, B)) - law.mean) < rounding(B)
    assert abs(design.variance(values(design, B)) - law.variance) < 1e-13 * n * law.variance + 1e-12


def test_array_has_not_the_third_moment():
    """What the docstring denies; a test that could not see a wrong design would pass here too."""
    B = form(16)
    law, design = exact.moments(B, "rademacher"), designs.orthogonal_array(16)
    third = design.mean((values(design, B) - law.mean) ** 3)
    assert abs(third / law.third - 1) > 1e-3


@pytest.mark.parametrize("n", [0, 129])
def test_array_refuses(n):
    with pytest.raises(ValueError, match=f"needs n in 1 … 128.*got {n}"):
        designs.orthogonal_array(n)


@pytest.mark.parametrize("n", [2, 3, 10, 61, 125])
def test_sphere_design_has_the_moments_of_sphere_and_gaussian(n):
    design, B = designs.sphere_design(n), form(n)
    found, law = values(design, B), exact.moments(B, "sphere")
    tolerance = 1e-13 * n * float(B.square().sum())
    assert abs(design.mean(found) - law.mean) < rounding(B)
    assert abs(design.variance(found) - law.variance) < tolerance
    mean, variance = designs.gaussian_moments(design, found)
    gaussian = exact.moments(B, "gaussian")
    assert abs(mean - gaussian.mean) < rounding(B)
    assert abs(variance - gaussian.variance) < tolerance


def test_gaussian_moments_keep_a_small_variance_beside_a_large_mean():
    """Where E q² − (E q)² would have lost it: one part in 1e14."""
    n = 61
    design, B = designs.sphere_design(n), 1e7 * torch.eye(n, dtype=f64)
    _, variance = designs.gaussian_moments(design, values(design, B))
    assert variance == pytest.approx(exact.moments(B, "gaussian").variance, rel=1e-13)
