r"""Sets of probes over which means and variances are exact: nothing is left to chance.

| design | outcomes | exact for |
|---|---|---|
| `all_signs` | 2^(n−1) | the law of any even function of one Rademacher probe |
| `sign_multisets` | multisets of m of these | the law of any even, symmetric function of m probes |
| `sign_tuples` | m-tuples of these | the law of any even function of m probes |
| `hadamard_basis`, `identity_basis`, `haar_basis` | n | the mean of xᵀBx, and of its gradient |
| `orthogonal_array` | 4^k, n ≤ 2^k | mean and variance of xᵀBx, Rademacher |
| `sphere_design` | 4^k + n | mean and variance of xᵀBx, sphere, and from it Gaussian |
"""

from __future__ import annotations

import math
from itertools import chain, combinations_with_replacement, product
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from specbp import exact

MAX_OUTCOMES = 1_000_000
MAX_BITS = 7

# Irreducible polynomials over GF(2) of degrees 0 … 7, bit i for x^i: GF(2^k) is what they leave.
_MODULI = (0b1, 0b11, 0b111, 0b1011, 0b10011, 0b100101, 0b1000011, 0b10000011)


class Design(NamedTuple):
    """Blocks of probes and their weights: float64 tensors of shapes (R, n, m) and (R,).

    Attributes:
        probes: Outcome r is the block probes[r] of m columns.
        weights: Its probability; they sum to one.

    Example:
        >>> design = all_signs(2)
        >>> design.probes.shape, design.weights
        (torch.Size([2, 2, 1]), tensor([0.5000, 0.5000], dtype=torch.float64))
        >>> design.mean([1.0, 3.0]), design.variance([1.0, 3.0])
        (2.0, 1.0)
    """

    probes: Tensor
    weights: Tensor

    @property
    def columns(self) -> Tensor:
        """All probes side by side, (n, R m), for estimators that give one value per probe."""
        return self.probes.mT.reshape(-1, self.probes.shape[-2]).mT

    def mean(self, values: Any) -> float:
        """Expectation of a value per outcome, shape (R,); NaN where one is NaN.

        Raises:
            ValueError: The shape is not (R,).
        """
        return float(self.weights @ self._checked(values))

    def variance(self, values: Any) -> float:
        """Variance of a value per outcome, shape (R,): that of the law, no degree of freedom lost.

        Raises:
            ValueError: The shape is not (R,).
        """
        values = self._checked(values)
        return float(self.weights @ (values - self.weights @ values).square())

    def _checked(self, values: Any) -> Tensor:
        found = torch.as_tensor(values).detach().to("cpu", torch.float64)
        if found.shape != self.weights.shape:
            raise ValueError(
                f"A design of {len(self.weights)} outcomes needs values of shape "
                f"({len(self.weights)},), one per outcome; got {tuple(found.shape)}."
            )
        return found


def all_signs(n: int) -> Design:
    """Every sign vector up to its sign, 2^(n−1) of them: the law of any even function of a probe.

    Raises:
        ValueError: n is not in 1 … 20.

    Example:
        >>> B = torch.tensor([[1.0, 2.0], [2.0, 5.0]], dtype=torch.float64)
        >>> design = all_signs(2)
        >>> forms = torch.einsum("rim,ij,rjm->r", design.probes, B, design.probes)
        >>> design.mean(forms), design.variance(forms)
        (6.0, 16.0)
    """
    return _equal(_signs(n).unsqueeze(-1))


def sign_multisets(n: int, m: int) -> Design:
    r"""All multisets of m of the 2^(n−1) sign vectors, for estimators of m probes jointly.

    .. math:: P = \frac{m!}{\prod_i c_i!}\, 2^{-m(n-1)}, \quad c_i \text{ the multiplicities}

    The law of any function that depends neither on the signs nor on the order of its probes; where
    the order matters, as between the probes of a sketch and of its residual, take `sign_tuples`.
    Coinciding probes have their weight too: they show what an estimator does where it degenerates.

    Args:
        n: Length of a probe.
        m: Probes in a block.

    Raises:
        ValueError: More than a million outcomes.

    Example:
        >>> sign_multisets(2, 2).weights
        tensor([0.2500, 0.5000, 0.2500], dtype=torch.float64)
    """
    K = _vectors(n)
    _affordable(math.comb(K + m - 1, m), n, m)
    index, weights = multisets(K, m)
    return Design(_signs(n)[torch.from_numpy(index)].mT.contiguous(), torch.from_numpy(weights))


def sign_tuples(n: int, m: int) -> Design:
    """All ordered m-tuples of the 2^(n−1) sign vectors, for functions of probes with roles.

    Raises:
        ValueError: More than a million outcomes.

    Example:
        >>> sign_tuples(3, 2).probes.shape
        torch.Size([16, 3, 2])
    """
    K = _vectors(n)
    _affordable(K**m, n, m)
    index = np.fromiter(chain.from_iterable(product(range(K), repeat=m)), int, m * K**m)
    return _equal(_signs(n)[torch.from_numpy(index.reshape(-1, m))].mT.contiguous())


def multisets(K: int, m: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices (R, m), each row ascending, and probabilities (R,) of m draws out of K, unordered.

    Example:
        >>> multisets(2, 2)
        (array([[0, 0],
           [0, 1],
           [1, 1]]), array([0.25, 0.5 , 0.25]))
    """
    count = math.comb(K + m - 1, m)
    rows = chain.from_iterable(combinations_with_replacement(range(K), m))
    index = np.fromiter(rows, int, m * count).reshape(count, m)
    # In an ascending row the positions within runs of equal entries multiply to the product of c_i!
    run, orders = np.ones(count), np.ones(count)
    for previous, current in zip(index.T, index.T[1:], strict=False):
        run = np.where(previous == current, run + 1, 1)
        orders *= run
    return index, math.factorial(m) / orders / float(K) ** m


def hadamard_basis(n: int) -> Design:
    r"""The columns of Sylvester's matrix: n sign vectors with the mean of any xᵀBx, and gradient.

    .. math:: \tfrac1n \sum_i x_i x_i^\top = I
              \quad\Rightarrow\quad \tfrac1n \sum_i x_i^\top B x_i = \operatorname{tr} B

    Raises:
        ValueError: n is not a power of two.

    Example:
        >>> design = hadamard_basis(4)
        >>> design.mean((design.columns**2).sum(0))
        4.0
    """
    return _equal(_sylvester(n).unsqueeze(-1))


def identity_basis(n: int) -> Design:
    """The vectors √n eᵢ: the mean of any xᵀBx, on the sphere |x|² = n.

    Example:
        >>> identity_basis(4).columns[:, 0]
        tensor([2., 0., 0., 0.], dtype=torch.float64)
    """
    return _equal(math.sqrt(n) * torch.eye(n, dtype=torch.float64).unsqueeze(-1))


def haar_basis(n: int, *, generator: torch.Generator) -> Design:
    """√n times the columns of a random orthogonal matrix: the same mean from unstructured probes.

    Source: Mezzadri (2007), arXiv math-ph/0609050, on the signs that make it Haar distributed.

    Example:
        >>> X = haar_basis(5, generator=torch.Generator().manual_seed(0)).columns
        >>> bool(torch.allclose(X @ X.mT, 5 * torch.eye(5, dtype=torch.float64)))
        True
    """
    Q, R = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    return _equal(math.sqrt(n) * (Q * R.diagonal().sign()).mT.unsqueeze(-1))


def orthogonal_array(n: int) -> Design:
    r"""4^k sign vectors with all even moments of Rademacher probes to order 4, n ≤ 2^k.

    .. math:: x_{uv}(t) = (-1)^{\langle u, t\rangle + \langle v, t^3\rangle},
              \qquad t \in GF(2^k),\ u, v \in GF(2)^k

    Mean and variance of any xᵀBx over it are the exact ones; the third moment is not. ⟨u, t⟩ runs
    through the same functions of t as Tr(at), so together with their negatives these rows are the
    dual of the extended BCH code that corrects two errors. No word of that code has a weight of
    1 … 5, whatever k ≥ 1, which makes its dual an orthogonal array of strength 5, and deleting the
    coordinates beyond n keeps it one. The negatives are left out: xᵀBx has the same values there.

    Args:
        n: Length of a probe; k = ⌈log₂ n⌉, so 4096 probes for n = 64 and 16384 for n = 128.

    Raises:
        ValueError: n is not in 1 … 128.

    Source: Delsarte, Philips Research Reports Suppl. 10 (1973); Hedayat, Sloane and Stufken,
    Orthogonal Arrays (1999), chapter 5, doi:10.1007/978-1-4612-1478-6.

    Example:
        >>> design = orthogonal_array(61)
        >>> design.probes.shape
        torch.Size([4096, 61, 1])
        >>> B = torch.ones(61, 61, dtype=torch.float64)
        >>> design.mean(design.columns.sum(0) ** 2), design.variance(design.columns.sum(0) ** 2)
        (61.0, 7320.0)
    """
    if not 1 <= n <= 2**MAX_BITS:
        raise ValueError(
            f"An array needs n in 1 … {2**MAX_BITS} (4^k probes, k = ⌈log₂ n⌉), got {n}; "
            "the bases give the mean for any n."
        )
    k = (n - 1).bit_length()
    walsh = _sylvester(2**k)
    rows = walsh[:, None, :n] * walsh[None, :, _cubes(k)[:n]]
    return _equal(rows.reshape(-1, n, 1))


def sphere_design(n: int) -> Design:
    r"""Cubature of degree 5 on the sphere |x|² = n: mean and variance of any xᵀBx there.

    .. math:: \tfrac{2}{n+2} \cdot \{\sqrt n\, e_i\} \;+\; \tfrac{n}{n+2} \cdot
              \{\text{orthogonal array}\}

    Raises:
        ValueError: n is not in 1 … 128.

    Source: Stroud, Approximate Calculation of Multiple Integrals (1971), formula Uₙ: 5-2, with the
    array in place of all sign vectors.

    Example:
        >>> design = sphere_design(3)
        >>> forms = design.columns[0] ** 2  # Var = 2 n / (n + 2) · (1 − 1 / n) = 4 / 5
        >>> round(design.mean(forms), 12), round(design.variance(forms), 12)
        (1.0, 0.8)
    """
    axes, array = identity_basis(n), orthogonal_array(n)
    return Design(
        torch.cat([axes.probes, array.probes]),
        torch.cat([axes.weights * 2 / (n + 2), array.weights * n / (n + 2)]),
    )


def gaussian_moments(design: Design, values: Any) -> tuple[float, float]:
    r"""Mean and variance of q = xᵀBx for Gaussian x, from its values on a sphere design.

    .. math:: E_g\, q^2 = \tfrac{n+2}{n} E_s\, q^2 \quad\Rightarrow\quad
              \mathrm{Var}_g = \tfrac{n+2}{n} \mathrm{Var}_s + \tfrac2n (E_s\, q)^2

    Only for values with q(cx) = c² q(x): a constant that does not grow with |x|² must be taken off.

    Args:
        design: `sphere_design(n)`.
        values: One value per probe, shape (R,).

    Raises:
        ValueError: The shape is not (R,).

    Example:
        >>> design = sphere_design(3)
        >>> mean, variance = gaussian_moments(design, design.columns[0] ** 2)
        >>> round(mean, 12), round(variance, 12)
        (1.0, 2.0)
    """
    n, mean = design.probes.shape[-2], design.mean(values)
    return mean, (n + 2) / n * design.variance(values) + 2 / n * mean**2


def _equal(probes: Tensor) -> Design:
    """Equal weights."""
    return Design(probes, torch.full((len(probes),), 1 / len(probes), dtype=torch.float64))


def _signs(n: int) -> Tensor:
    return torch.from_numpy(exact.all_signs(n))


def _vectors(n: int) -> int:
    """Sign vectors of length n up to sign."""
    return 2 ** max(n - 1, 0)


def _affordable(count: int, n: int, m: int) -> None:
    if n < 1 or m < 1 or count > MAX_OUTCOMES:
        raise ValueError(
            f"Enumeration needs n, m ≥ 1 and at most {MAX_OUTCOMES} outcomes; "
            f"n = {n}, m = {m} have {count}. Take a smaller n or m."
        )


def _sylvester(n: int) -> Tensor:
    if n < 1 or n & (n - 1):
        raise ValueError(f"Sylvester's matrix needs n = 2^k, got {n}; take haar_basis.")
    return torch.from_numpy(scipy.linalg.hadamard(n, dtype=np.float64))


def _cubes(k: int) -> Tensor:
    """t³ for every t of GF(2^k), elements coded by their bits."""
    t = np.arange(2**k)
    return torch.from_numpy(_times(t, _times(t, t, k), k))


def _times(a: np.ndarray, b: np.ndarray, k: int) -> np.ndarray:
    """Products in GF(2^k): shift and add without carry, reduced at every step."""
    total = np.zeros_like(a)
    for bit in range(k):
        total = total ^ (b >> bit & 1) * a
        a = a << 1
        a = a ^ (a >> k) * _MODULI[k]
    return total
