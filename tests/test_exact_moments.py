from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.fft import dct
from scipy.linalg import hadamard

from specbp.exact import Moments, all_signs, block_variance, moments, orthogonal_variance

EPS = np.finfo(np.float64).eps


def _matrix(n: int, kind: str, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    B = rng.standard_normal((n, n))
    if kind == "indefinite":
        return B + B.T
    if kind == "spike":
        return np.outer(B[0], B[0]) + 0.01 * np.eye(n)
    if kind == "log":
        V = np.linalg.qr(B)[0]
        return (V * np.log(np.geomspace(1e-4, 1, n))) @ V.T
    return B  # not symmetric


def _of_distribution(q: np.ndarray, weights: np.ndarray) -> Moments:
    """Moments of a finite distribution, by their definition."""
    mean = float(weights @ q)
    return Moments(mean, *(float(weights @ (q - mean) ** r) for r in (2, 3, 4)))


def _assert_equal(actual: Moments, expected: Moments, B: np.ndarray) -> None:
    # q is a sum of n^2 products, off by n eps sum|B|; a central moment of order r multiplies that
    # by r (scale of q)^(r-1), and the closed forms add n roundings of sums of the same size.
    n, scale = len(B), len(B) * np.linalg.norm(B, 2)
    for order, name in enumerate(("mean", "variance", "third", "fourth"), start=1):
        error = abs(getattr(actual, name) - getattr(expected, name))
        assert error <= 4 * order * n * EPS * scale**order, name


def _forms(B: np.ndarray, X: np.ndarray) -> np.ndarray:
    """One quadratic form for each row of X."""
    return np.einsum("ki,ij,kj->k", X, B, X)


@pytest.mark.parametrize("n", [1, 2, 3, 6, 8, 10])
@pytest.mark.parametrize("kind", ["indefinite", "spike", "log", "unsymmetric"])
def test_rademacher_moments_by_enumeration(n: int, kind: str) -> None:
    B, X = _matrix(n, kind, n), all_signs(n)
    _assert_equal(
        moments(B, "rademacher"), _of_distribution(_forms(B, X), np.full(len(X), 1 / len(X))), B
    )


def _hermite(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Tensor Gauss–Hermite rule with 5 points, exact to degree 9 >= 8 in every coordinate."""
    x, w = np.polynomial.hermite_e.hermegauss(5)
    X = np.array(list(itertools.product(x, repeat=n)))
    return X, np.prod(list(itertools.product(w / w.sum(), repeat=n)), axis=1)


def _circle() -> tuple[np.ndarray, np.ndarray]:
    """Nine equidistant points integrate trigonometric polynomials of degree 8 exactly."""
    phi = 2 * np.pi * np.arange(9) / 9
    return np.sqrt(2) * np.stack([np.cos(phi), np.sin(phi)], axis=1), np.full(9, 1 / 9)


def _two_sphere() -> tuple[np.ndarray, np.ndarray]:
    """Gauss–Legendre in height (degree 9) times nine longitudes: exact for degree 8."""
    (height, w), (ring, v) = np.polynomial.legendre.leggauss(5), _circle()
    radius = np.sqrt(1 - height**2)
    X = [[r * c, r * s, np.sqrt(3) * h] for h, r in zip(height, radius, strict=True)
         for c, s in ring * np.sqrt(1.5)]  # fmt: skip
    return np.array(X), np.outer(w / 2, v).ravel()


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("kind", ["indefinite", "spike", "unsymmetric"])
def test_gaussian_moments_by_quadrature(n: int, kind: str) -> None:
    B, (X, w) = _matrix(n, kind, n), _hermite(n)
    # The rule's points reach 2.86 per coordinate where sign vectors reach 1: scale by their square.
    _assert_equal(moments(B, "gaussian"), _of_distribution(_forms(B, X), w), 8.2 * B)


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("kind", ["indefinite", "spike", "unsymmetric"])
def test_sphere_moments_by_quadrature(n: int, kind: str) -> None:
    B, (X, w) = _matrix(n, kind, n), _circle() if n == 2 else _two_sphere()
    assert np.allclose((X**2).sum(1), n, rtol=4 * EPS)
    _assert_equal(moments(B, "sphere"), _of_distribution(_forms(B, X), w), B)


def test_laws_differ_where_they_should() -> None:
    diagonal = np.diag([1.0, 2.0, 4.0])
    assert moments(diagonal, "rademacher") == Moments(7.0, 0.0, 0.0, 0.0)
    assert moments(diagonal, "gaussian").variance == 42.0
    assert moments(2 * np.eye(3), "sphere") == Moments(6.0, 0.0, 0.0, 0.0)
    assert moments(2 * np.eye(3), "gaussian").variance == 24.0


def test_gaussian_moments_are_those_of_a_sum_of_chi_squares() -> None:
    lam = np.geomspace(0.1, 1, 40)
    V = np.linalg.qr(np.random.default_rng(0).standard_normal((40, 40)))[0]
    m = moments((V * lam) @ V.T, "gaussian")
    # Cumulants of lam_i chi^2_1 add: 2^(r-1) (r-1)! lam_i^r.
    expected = [lam.sum(), 2 * (lam**2).sum(), 8 * (lam**3).sum(), 48 * (lam**4).sum()]
    kappa4 = m.fourth - 3 * m.variance**2
    assert np.allclose([m.mean, m.variance, m.third, kappa4], expected, rtol=400 * EPS)


def test_standardised_moments() -> None:
    m = moments(np.diag([1.0]), "gaussian")  # chi-square with one degree of freedom
    assert m.skewness == pytest.approx(np.sqrt(8))
    assert m.excess_kurtosis == pytest.approx(12)
    degenerate = moments(np.eye(3), "rademacher")
    assert np.isnan(degenerate.skewness)
    assert np.isnan(degenerate.excess_kurtosis)


@pytest.mark.parametrize("m", [1, 2, 3])
def test_averaged_by_enumeration(m: int) -> None:
    B = _matrix(4, "spike")
    q = _forms(B, all_signs(4))
    means = np.array([np.mean(t) for t in itertools.product(q, repeat=m)])
    expected = _of_distribution(means, np.full(len(means), 1 / len(means)))
    one = moments(B, "rademacher")
    _assert_equal(one.averaged(m), expected, B)
    assert one.averaged(m).excess_kurtosis == pytest.approx(one.excess_kurtosis / m)
    assert one.averaged(m).skewness == pytest.approx(one.skewness / np.sqrt(m))


@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_orthogonal_variance_of_hadamard_columns(m: int) -> None:
    B, H = _matrix(4, "unsymmetric"), hadamard(4).T
    signs = np.array(list(itertools.product([1.0, -1.0], repeat=4)))
    means = [
        np.mean([_forms(B, (d * H[list(columns)])) for columns in [chosen]])
        for d in signs
        for chosen in itertools.combinations(range(4), m)
    ]
    assert abs(np.var(means) - orthogonal_variance(B, m, "rademacher")) <= 100 * EPS * (B**2).sum()


def test_orthogonal_variance_on_the_sphere() -> None:
    B, (X, w) = _matrix(3, "indefinite"), _two_sphere()
    V1 = moments(B, "sphere").variance
    assert orthogonal_variance(B, 1, "sphere") == V1
    assert orthogonal_variance(B, 3, "sphere") == 0.0
    # Two orthogonal directions have the third as complement: their forms add to n tr B - q_3.
    pair = (3 * np.trace(B) - _forms(B, X)) / 2
    expected = _of_distribution(pair, w).variance
    assert orthogonal_variance(B, 2, "sphere") == pytest.approx(expected, rel=100 * EPS)


def test_moments_refuse() -> None:
    with pytest.raises(ValueError, match="gaussian.*rademacher.*sphere.*got 'uniform'"):
        moments(np.eye(2), "uniform")
    with pytest.raises(ValueError, match="square"):
        moments(np.ones((2, 3)), "sphere")
    with pytest.raises(ValueError, match="finite"):
        moments(np.full((2, 2), np.nan), "sphere")
    with pytest.raises(ValueError, match="positive integer, got 0"):
        moments(np.eye(2), "sphere").averaged(0)


def test_orthogonal_variance_refuses() -> None:
    with pytest.raises(ValueError, match="for orthogonal probes, got 'gaussian'"):
        orthogonal_variance(np.eye(2), 1, "gaussian")
    with pytest.raises(ValueError, match="at most n = 2 probes"):
        orthogonal_variance(np.eye(2), 3, "sphere")


@pytest.mark.parametrize("n", [1, 2, 5])
def test_all_signs(n: int) -> None:
    X = all_signs(n)
    assert X.shape == (2 ** (n - 1), n)
    both = {tuple(row) for row in np.vstack([X, -X])}
    assert both == set(itertools.product([1.0, -1.0], repeat=n))


@pytest.mark.parametrize("n", [0, 21])
def test_all_signs_refuses(n: int) -> None:
    with pytest.raises(ValueError, match=f"got {n}"):
        all_signs(n)


# Blocks of dependent probes, every outcome counted ------------------------------------------------

# The rows of each population, each of norm √n; those of the first two get random signs.
POPULATIONS = {
    "hadamard": lambda n: hadamard(n).astype(float),
    "mixed_unit": lambda n: np.sqrt(n) * dct(np.eye(n), axis=0, norm="ortho"),
    "unit_vector": lambda n: np.sqrt(n) * np.eye(n),
}


def _subset_means(B: np.ndarray, rows: np.ndarray, m: int, signed: bool) -> list[float]:
    """The mean form of every subset of m rows, for every D of signs up to the common one."""
    D = all_signs(len(B)) if signed else np.ones((1, len(B)))
    chosen = itertools.combinations(range(len(B)), m)
    return [_forms(B, d * rows[list(c)]).mean() for c in chosen for d in D]


@pytest.mark.parametrize("kind", ["indefinite", "spike", "log", "unsymmetric"])
@pytest.mark.parametrize(
    ("law", "n"),
    [("hadamard", n) for n in (1, 2, 4, 8)]
    + [(law, n) for law in ("mixed_unit", "unit_vector") for n in (1, 2, 3, 5, 6)],
)
def test_populations_by_enumeration(law: str, n: int, kind: str) -> None:
    B, rows = _matrix(n, kind, n), POPULATIONS[law](n)
    assert np.allclose(rows @ rows.T, n * np.eye(n), atol=8 * n * EPS)
    for m in {1, 2, 3, n - 1, n} & set(range(1, n + 1)):
        means = _subset_means(B, rows, m, law != "unit_vector")
        assert np.mean(means) == pytest.approx(np.trace(B), abs=100 * n * EPS * np.abs(B).sum())
        limit = 100 * n * EPS * (np.abs(B).sum()) ** 2
        assert abs(np.var(means) - block_variance(B, law, m)) <= limit, m


def _balanced(n: int) -> list[tuple[np.ndarray, float]]:
    """Every balanced sign vector and its probability, half for either balance of an odd n."""
    found = []
    for minus in {n // 2, (n + 1) // 2}:
        places = list(itertools.combinations(range(n), minus))
        share = 1.0 if n % 2 == 0 else 0.5
        for chosen in places:
            s = np.ones(n)
            s[list(chosen)] = -1
            found.append((s, share / len(places)))
    return found


def _pair_means(B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of all pairs (x, s∘x) and their probabilities."""
    n, X = len(B), all_signs(len(B))
    outcomes = [((_forms(B, X) + _forms(B, X * s)) / 2, w / len(X)) for s, w in _balanced(n)]
    means = np.concatenate([q for q, _ in outcomes])
    return means, np.concatenate([np.full(len(X), w) for _, w in outcomes])


@pytest.mark.parametrize("kind", ["indefinite", "spike", "log", "unsymmetric"])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7])
def test_antithetic_pairs_by_enumeration(n: int, kind: str) -> None:
    B = _matrix(n, kind, n)
    means, weights = _pair_means(B)
    assert weights.sum() == pytest.approx(1, rel=1e-13)
    found = _of_distribution(means, weights)
    limit = 100 * n * EPS * np.abs(B).sum() ** 2
    assert found.mean == pytest.approx(np.trace(B), abs=limit)
    assert abs(found.variance - block_variance(B, "antithetic", 2)) <= limit
    assert (n > 2) or found.variance <= limit


@pytest.mark.parametrize("n", [3, 4])
def test_two_antithetic_pairs_are_independent(n: int) -> None:
    B = _matrix(n, "indefinite")
    means, weights = _pair_means(B)
    blocks = (means[:, None] + means) / 2
    found = _of_distribution(blocks.ravel(), np.outer(weights, weights).ravel())
    assert found.variance == pytest.approx(block_variance(B, "antithetic", 4), rel=1e-12)


@pytest.mark.parametrize("law", ["rademacher", "gaussian", "sphere"])
def test_blocks_of_independent_probes(law: str) -> None:
    B = _matrix(6, "unsymmetric")
    assert block_variance(B, law, 5) == pytest.approx(moments(B, law).averaged(5).variance)


@pytest.mark.parametrize("law", ["rademacher", "sphere"])
def test_orthogonal_blocks_have_the_variance_of_their_marginal(law: str) -> None:
    B, name = _matrix(8, "indefinite"), {"rademacher": "hadamard", "sphere": "orthogonal"}[law]
    for m in (1, 3, 8):
        assert block_variance(B, name, m) == pytest.approx(orthogonal_variance(B, m, law))


EVERY_LAW = ("rademacher", "gaussian", "sphere", "orthogonal", "antithetic", *POPULATIONS)


@pytest.mark.parametrize("law", EVERY_LAW)
def test_block_variance_sees_the_symmetric_part_and_scales_with_the_square(law: str) -> None:
    B = _matrix(8, "unsymmetric")
    one = block_variance(B, law, 2)
    assert one > 0
    assert block_variance(B + 3 * (B - B.T), law, 2) == pytest.approx(one, rel=1e-12)
    assert block_variance(-3 * B, law, 2) == pytest.approx(9 * one, rel=1e-12)


def test_a_multiple_of_the_identity_has_variance_for_gaussian_probes_only() -> None:
    found = {law for law in EVERY_LAW if block_variance(2 * np.eye(4), law, 2) > 64 * EPS}
    assert found == {"gaussian"}


def test_block_variance_refuses() -> None:
    with pytest.raises(ValueError, match="rademacher.*mixed_unit.*got 'uniform'"):
        block_variance(np.eye(2), "uniform", 1)
    with pytest.raises(ValueError, match="mixed_unit probes has at most n = 2, got m = 3"):
        block_variance(np.eye(2), "mixed_unit", 3)
    with pytest.raises(ValueError, match=r"need n = 2\^k, got n = 6"):
        block_variance(np.eye(6), "hadamard", 3)
    with pytest.raises(ValueError, match="even, got m = 3"):
        block_variance(np.eye(6), "antithetic", 3)
    with pytest.raises(ValueError, match="m must be a positive integer, got 0"):
        block_variance(np.eye(6), "gaussian", 0)
    with pytest.raises(ValueError, match="square"):
        block_variance(np.ones((2, 3)), "unit_vector", 1)
