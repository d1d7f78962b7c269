r"""Truth certificates: log-determinants from explicit matrices, by several methods, with a bound.

Every method here is backward stable: it returns the exact answer for a matrix A + E with
‖E‖₂ ≤ p ε ‖A‖₂, ε = 2⁻⁵². To first order

.. math:: |\delta \log\det A| = |\mathrm{tr}(A^{-1}E)| \le \|E\|_2 \sum_i \frac1{\lambda_i}
          \le p\,\varepsilon \sum_i \frac{\lambda_1}{\lambda_i},

and for J, with singular values σ_i and A = JᵀJ,

.. math:: |\delta \log\det J^\top J| = 2\,|\mathrm{tr}(J^{+}E)|
          \le 2\,p\,\varepsilon \sum_i \frac{\sigma_1}{\sigma_i}.

The second sum has square roots where the first has eigenvalues: that is why a Jacobian is never
multiplied out. p = √n is used: the worst case is larger, but the rounding errors of n reflections
add like a random walk. To this comes the rounding of the n logarithms and of their sum,
ε (Σ_i |log λ_i| + |Σ_i log λ_i|). Against 60-digit arithmetic the errors were 10 to 1000 times
smaller than this bound (n <= 64, condition numbers of J or A up to 1e10).
The entries of the given matrix are taken as exact: how they were computed is not covered.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg

from specbp.exact._arrays import EPS, Array, as_float64, as_numpy, as_square


@dataclass(frozen=True)
class Truth:
    """A log-determinant with its certificate.

    Attributes:
        value: the log-determinant, in nats.
        u_truth: absolute uncertainty: the larger of the spread of ``methods`` and the first-order
            rounding bound (see the module's docstring).
        method: the method ``value`` is taken from.
        methods: value by method.
        n: order of A (of JᵀJ for a Jacobian).
        cond: condition number lambda_max / lambda_min of A (of JᵀJ, hence cond(J)^2).
    """

    value: float
    u_truth: float
    method: str
    methods: Mapping[str, float]
    n: int
    cond: float

    @property
    def digits(self) -> float:
        """Certified decimal digits, relative to max(1, |value|)."""
        return -math.log10(self.u_truth / max(1.0, abs(self.value)))


def truth_of_jacobian(J: Any) -> Truth:
    r"""Compute log det JᵀJ of an explicit Jacobian without forming JᵀJ.

    .. math:: \log\det J^\top J = 2\sum_i \log\sigma_i(J) = 2\sum_i \log|r_{ii}|, \qquad J = QR

    The value is the one from QR: the backward error of Householder QR is small column by column,
    so a badly scaled latent coordinate costs it no accuracy.

    Args:
        J: shape (N, n), N >= n, array-like or tensor; converted to float64.

    Raises:
        ValueError: J is not one finite matrix with N >= n >= 1.
        numpy.linalg.LinAlgError: J is numerically rank-deficient,
            sigma_min <= max(N, n) eps sigma_max.

    Source: Golub and Van Loan, Matrix Computations (2013), chapters 5 and 8.

    >>> truth = truth_of_jacobian([[2.0, 0.0], [0.0, 0.5], [0.0, 0.0]])
    >>> round(truth.value, 12), truth.n, truth.cond
    (0.0, 2, 16.0)
    """
    J = _tall_matrix(J)
    sigma = scipy.linalg.svd(J, compute_uv=False, lapack_driver="gesvd")
    _require_full_rank(sigma, J.shape)
    diagonal = np.abs(np.diagonal(scipy.linalg.qr(J, mode="r")[0]))
    logs = 2 * np.log(sigma)
    methods = {"svd": math.fsum(logs), "qr": 2 * math.fsum(np.log(diagonal))}
    bound = 2 * _first_order(sigma) + _summation(logs)
    return _certificate("qr", methods, bound, sigma.size, float((sigma[0] / sigma[-1]) ** 2))


def truth_of_matrix(A: Any, eigenvalues: Any = None) -> Truth:
    r"""Compute log det A of an explicit symmetric positive definite matrix.

    .. math:: \log\det A = 2\sum_i \log l_{ii} = \sum_i \log\lambda_i(A), \qquad A = LL^\top

    The value is the Cholesky one (its error does not depend on the scaling of the diagonal), or,
    where A was built with prescribed eigenvalues, the sum of their logarithms; ``u_truth`` then
    covers the distance from that ideal matrix to its rounded entries.

    Args:
        A: shape (n, n), array-like or tensor, symmetric to rounding of its own dtype. The symmetric
            part is used; the skew part K changes log det A only by (norm(K) / lambda_min)^2 / 2,
            which is added to the uncertainty.
        eigenvalues: shape (n,), the eigenvalues A was built with, if known.

    Raises:
        ValueError: A is not finite, square, symmetric; the eigenvalues are not those of A.
        numpy.linalg.LinAlgError: A is not numerically positive definite,
            lambda_min <= n eps lambda_max.

    Source: Higham, Accuracy and Stability of Numerical Algorithms (2002), section 10.1.

    >>> truth = truth_of_matrix([[2.0, 0.0], [0.0, 0.5]], eigenvalues=[0.5, 2.0])
    >>> truth.value, sorted(truth.methods)
    (0.0, ['cholesky', 'eigenvalues', 'eigvalsh'])
    """
    unit = _unit_of(A)
    S, skew = _symmetric_part(as_square(A, "A"), unit)
    lam: Array = scipy.linalg.eigvalsh(S)[::-1]
    _require_definite(lam)
    diagonal = np.diagonal(np.linalg.cholesky(S))
    methods = {
        "cholesky": 2 * math.fsum(np.log(diagonal)),
        "eigvalsh": math.fsum(np.log(lam)),
    }
    if eigenvalues is not None:
        prescribed = _prescribed(eigenvalues, lam, unit)
        methods["eigenvalues"] = math.fsum(np.log(prescribed))
    bound = _first_order(lam) + _summation(np.log(lam)) + 0.5 * (skew / lam[-1]) ** 2
    method = "cholesky" if eigenvalues is None else "eigenvalues"
    return _certificate(method, methods, bound, lam.size, float(lam[0] / lam[-1]))


def check_tolerance(truth: Truth, tolerance: float) -> None:
    """Refuse a tolerance the truth cannot support.

    Raises:
        ValueError: tolerance < 10 u_truth (or is not a number).
    """
    if not tolerance >= 10 * truth.u_truth:
        msg = (
            f"the tolerance must be at least 10 u_truth = {10 * truth.u_truth:.3g} "
            f"(u_truth = {truth.u_truth:.3g}, cond = {truth.cond:.3g}), got {tolerance:.3g}; "
            "widen it or choose a better conditioned case"
        )
        raise ValueError(msg)


def jacobian_eigh(J: Any) -> tuple[Array, Array]:
    """Eigenvalues (n,), ascending, and eigenvectors (n, n) of JᵀJ from the SVD of J (N, n).

    The square roots of the eigenvalues are accurate to eps sigma_max, as no eigensolver applied to
    JᵀJ can be.

    Raises:
        ValueError: as `truth_of_jacobian`.
        numpy.linalg.LinAlgError: as `truth_of_jacobian`.
    """
    J = _tall_matrix(J)
    _, sigma, Vt = scipy.linalg.svd(J, full_matrices=False, lapack_driver="gesvd")
    _require_full_rank(sigma, J.shape)
    return sigma[::-1] ** 2, np.ascontiguousarray(Vt[::-1].T)


def _tall_matrix(J: Any) -> Array:
    J = as_float64(J, "J")
    if J.ndim != 2 or not J.shape[0] >= J.shape[1] >= 1:
        msg = f"J must be one matrix (N, n) with N >= n >= 1, got shape {J.shape}"
        raise ValueError(msg)
    return J


def _require_full_rank(sigma: Array, shape: tuple[int, ...]) -> None:
    floor = max(shape) * EPS * sigma[0]
    if not sigma[-1] > floor:
        msg = (
            f"J must have full column rank: sigma_min = {sigma[-1]:.3g} is not above "
            f"max(N, n) eps sigma_max = {floor:.3g}, so log det JᵀJ = -inf to working precision"
        )
        raise np.linalg.LinAlgError(msg)


def _require_definite(lam: Array) -> None:
    floor = lam.size * EPS * lam[0]
    if not lam[-1] > floor:
        msg = (
            f"A must be positive definite: lambda_min = {lam[-1]:.3g} is not above "
            f"n eps lambda_max = {floor:.3g}, so log det A = -inf or undefined"
        )
        raise np.linalg.LinAlgError(msg)


def _unit_of(A: Any) -> float:
    """Machine epsilon of the dtype A comes in: what "symmetric up to rounding" means for it."""
    dtype = as_numpy(A).dtype
    return float(np.finfo(dtype).eps) if dtype.kind == "f" else EPS


def _symmetric_part(A: Array, unit: float) -> tuple[Array, float]:
    """Symmetric part of A and the Frobenius norm of its skew part."""
    K = (A - A.T) / 2
    gap, allowed = np.abs(K).max(), len(A) * unit * np.abs(A).max()
    if gap > allowed:
        msg = (
            f"A must be symmetric: |A - Aᵀ| / 2 reaches {gap:.3g}, rounding explains "
            f"n eps max|A| = {allowed:.3g}; pass (A + A.T) / 2 if that is what is meant"
        )
        raise ValueError(msg)
    return (A + A.T) / 2, float(np.linalg.norm(K))


def _prescribed(eigenvalues: Any, lam: Array, unit: float) -> Array:
    """Check that the prescribed eigenvalues are those of A; the computed ones are descending."""
    given = np.sort(as_float64(eigenvalues, "eigenvalues").ravel())[::-1]
    if given.shape != lam.shape or not given[-1] > 0:
        msg = (
            f"eigenvalues must be {lam.size} positive numbers, "
            f"got {given.size} with minimum {given.min(initial=np.inf):.3g}"
        )
        raise ValueError(msg)
    # Weyl: forming V diag(λ) Vᵀ in floating point moves an eigenvalue by O(n eps lambda_max).
    gap, allowed = np.abs(given - lam).max(), 8 * lam.size * unit * lam[0]
    if gap > allowed:
        msg = (
            f"eigenvalues must be those of A: they differ from the computed ones by {gap:.3g}, "
            f"rounding explains 8 n eps lambda_max = {allowed:.3g}; leave them out to take the "
            "truth from the entries of A alone"
        )
        raise ValueError(msg)
    return given


def _first_order(values: Array) -> float:
    """Return √n ε Σ_i v_1 / v_i for values in descending order."""
    return math.sqrt(values.size) * EPS * math.fsum(values[0] / values)


def _summation(logs: Array) -> float:
    """Rounding of n logarithms and of their (correctly rounded) sum."""
    return EPS * (math.fsum(np.abs(logs)) + abs(math.fsum(logs)))


def _certificate(
    method: str, methods: dict[str, float], bound: float, n: int, cond: float
) -> Truth:
    spread = max(methods.values()) - min(methods.values())
    return Truth(methods[method], max(spread, bound), method, methods, n, cond)
