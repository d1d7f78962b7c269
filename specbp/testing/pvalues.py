r"""p-values from exact laws: saddlepoint, Cornish–Fisher, and Box's χ² for mean squares.

A score is the signed normal quantile of a tail probability: positive above, and of the same size
for the same rarity, so that scores of many tests can be added.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import optimize, special, stats

from specbp.exact import Moments

# Both formulas have the limit 0/0 at the mean; there Cornish–Fisher has the same accuracy.
NEAR_MEAN = 0.3

Derivatives = tuple[float, float, float]


@dataclass(frozen=True)
class Cgf:
    r"""Cumulant generating function of one value T, as that of its deviation T − E T.

    .. math:: K(s) = \log E\, e^{s (T - E T)}

    Attributes:
        law: Moments of T.
        derivatives: s -> (K, K′, K″), for s in the domain.
        domain: The open interval on which K is finite.
        support: Smallest and largest deviation.
        atoms: Their probabilities.

    Example:
        >>> cgf = enumerated_cgf([-1.0, 1.0])
        >>> bool(abs(cgf(0.5) - np.log(np.cosh(0.5))) < 1e-15), cgf(0.0)
        (True, 0.0)
    """

    law: Moments
    derivatives: Callable[[float], Derivatives]
    domain: tuple[float, float]
    support: tuple[float, float]
    atoms: tuple[float, float] = (0.0, 0.0)

    def __call__(self, s: float) -> float:
        """K(s), infinite outside the domain."""
        low, high = self.domain
        return self.derivatives(s)[0] if low < s < high else math.inf

    def averaged(self, m: int) -> Cgf:
        """That of the mean of m independent copies, m K(s / m)."""

        def derivatives(s: float) -> Derivatives:
            K, slope, curvature = self.derivatives(s / m)
            return m * K, slope, curvature / m

        (low, high), (first, last) = self.domain, self.atoms
        return replace(
            self,
            law=self.law.averaged(m),
            derivatives=derivatives,
            domain=(m * low, m * high),
            atoms=(first**m, last**m),
        )


def gaussian_cgf(eigenvalues: Any, m: int = 1) -> Cgf:
    r"""Exact cgf of the mean of m values xᵀBx, x standard normal, from the eigenvalues of B.

    .. math:: K(s) = m \sum_i -\tfrac12 \log(1 - 2 s \lambda_i / m) - s \lambda_i / m

    Args:
        eigenvalues: Of the symmetric part of B, shape (n,).
        m: Probes in one value.

    Raises:
        ValueError: All eigenvalues are zero.

    Source: Mathai and Provost, Quadratic Forms in Random Variables (1992), chapter 3.

    Example:
        >>> cgf = gaussian_cgf([1.0])  # χ² with one degree of freedom
        >>> cgf.law.mean, cgf.law.variance, cgf.domain, cgf.support
        (1.0, 2.0, (-inf, 0.5), (-1.0, inf))
    """
    lam = np.asarray(eigenvalues, dtype=np.float64)
    lam = lam[lam != 0]
    _spread(lam.size > 0, "an eigenvalue other than zero")
    kappa = [2 ** (r - 1) * math.factorial(r - 1) * float(np.sum(lam**r)) for r in (1, 2, 3, 4)]
    law = Moments(kappa[0], kappa[1], kappa[2], kappa[3] + 3 * kappa[1] ** 2)
    low, high = float(lam.min()), float(lam.max())

    def derivatives(s: float) -> Derivatives:
        u = 2 * s * lam
        K = -float(np.sum(np.log1p(-u) + u)) / 2
        return K, float(np.sum(lam * u / (1 - u))), float(np.sum(2 * (lam / (1 - u)) ** 2))

    domain = (1 / (2 * low) if low < 0 else -math.inf, 1 / (2 * high) if high > 0 else math.inf)
    support = (-math.inf if low < 0 else -kappa[0], math.inf if high > 0 else -kappa[0])
    return Cgf(law, derivatives, domain, support).averaged(m)


def enumerated_cgf(values: Any, weights: Any = None, m: int = 1) -> Cgf:
    r"""Exact cgf of the mean of m draws from finitely many values.

    .. math:: K(s) = m \log \sum_i w_i e^{s (t_i - \bar t) / m}

    Args:
        values: What a `Design` gave, shape (R,).
        weights: Their probabilities, shape (R,); equal where None.
        m: Independent draws in one value.

    Raises:
        ValueError: The values are equal or not finite, or the weights are no probabilities.

    Example:
        >>> law = enumerated_cgf([0.0, 1.0], weights=[0.75, 0.25]).law
        >>> law.mean, law.variance
        (0.25, 0.1875)
    """
    t = np.asarray(values, dtype=np.float64)
    w = np.full(t.shape, 1 / t.size) if weights is None else np.asarray(weights, dtype=np.float64)
    if t.ndim != 1 or w.shape != t.shape or (w < 0).any() or not abs(w.sum() - 1) <= 1e-9:
        raise ValueError(
            "A finite law needs values (R,) and weights (R,) ≥ 0 of sum 1, "
            f"got shapes {t.shape}, {w.shape} and the sum {w.sum():.6g}."
        )
    t, w = t[w > 0], w[w > 0]
    mean = float(w @ t)
    t = t - mean
    _spread(bool(np.isfinite(t).all() and np.ptp(t) > 0), "finite values that differ")

    def derivatives(s: float) -> Derivatives:
        K = float(special.logsumexp(s * t, b=w))
        tilted = w * np.exp(s * t - K)
        slope = float(tilted @ t)
        return K, slope, float(tilted @ (t - slope) ** 2)

    law = Moments(mean, *(float(w @ t**r) for r in (2, 3, 4)))
    ends = (float(t.min()), float(t.max()))
    atoms = (float(w[t == ends[0]].sum()), float(w[t == ends[1]].sum()))
    return Cgf(law, derivatives, (-math.inf, math.inf), ends, atoms).averaged(m)


def saddlepoint_score(mean_of_R: float, cgf: Cgf, R: int) -> float:
    r"""Normal score of the mean of R independent values, from their exact cgf.

    .. math:: r^* = w + \tfrac1w \log\tfrac vw, \quad w = \pm\sqrt{2R(\hat s d - K(\hat s))},
              \quad v = \hat s \sqrt{R K''(\hat s)}, \quad K'(\hat s) = d

    with d the deviation of the mean from E T. Φ(r*) and the formula of Lugannani and Rice,
    Φ(w) + φ(w)(1/w − 1/v), agree to the order of either's error; r* is a score at once and never
    leaves [0, 1] as a probability. Near the mean, |w| < 0.3, where both are 0/0, Cornish–Fisher
    takes over. No correction for a lattice is made: a law of very few values wants larger R.

    Args:
        mean_of_R: Mean of the R values.
        cgf: That of one value.
        R: Independent values.

    Returns:
        The score; NaN for a mean that is not finite, infinite where the law cannot reach.

    Source: Lugannani and Rice (1980), doi:10.2307/1426607; Barndorff-Nielsen (1986),
    doi:10.1093/biomet/73.2.307.

    Example:
        >>> cgf = gaussian_cgf([1.0])  # 20 T is χ² with 20 degrees of freedom
        >>> score = saddlepoint_score(2.0, cgf, 20)
        >>> bool(abs(score - stats.norm.isf(stats.chi2.sf(40.0, 20))) < 1e-3)
        True
    """
    deviation = mean_of_R - cgf.law.mean
    if not math.isfinite(deviation):
        return math.nan
    low, high = cgf.support
    if not low < deviation < high:
        return _edge_score(deviation, cgf, R)
    s = _saddle(deviation, cgf)
    K, _, curvature = cgf.derivatives(s)
    w = math.copysign(math.sqrt(max(2 * R * (s * deviation - K), 0.0)), deviation)
    if abs(w) < NEAR_MEAN:
        sd = math.sqrt(cgf.law.variance / R)
        return cornish_fisher(deviation / sd, cgf.law.averaged(R))
    v = s * math.sqrt(R * curvature)
    return _kept(w + math.log(v / w) / w, w)


def saddlepoint_p(mean_of_R: float, cgf: Cgf, R: int) -> float:
    """Two-sided p-value of the mean of R independent values, by `saddlepoint_score`; NaN gives 0.

    Example:
        >>> p = saddlepoint_p(2.0, gaussian_cgf([1.0]), 20)
        >>> bool(abs(p / (2 * stats.chi2.sf(40.0, 20)) - 1) < 2e-3)
        True
    """
    return normal_p(saddlepoint_score(mean_of_R, cgf, R))


def _edge_score(deviation: float, cgf: Cgf, R: int) -> float:
    """On the edge of the support all R values are the extreme one; beyond it nothing is."""
    side = 0 if deviation < 0 else 1
    reached = deviation == cgf.support[side]
    tail = cgf.atoms[side] ** R if reached else 0.0
    return math.copysign(max(float(stats.norm.isf(tail)), 0.0), deviation)


def _saddle(deviation: float, cgf: Cgf) -> float:
    """The root of K′(s) = deviation, which is increasing and passes through the origin."""

    def excess(s: float) -> float:
        return cgf.derivatives(s)[1] - deviation

    if deviation == 0:
        return 0.0
    side = 0 if deviation < 0 else 1
    end, step = cgf.domain[side], math.copysign(1 / math.sqrt(cgf.law.variance), deviation)
    for j in range(1, 1000):
        far = end * (1 - 2.0**-j) if math.isfinite(end) else step * 2.0**j
        if excess(far) * deviation >= 0:
            return float(optimize.brentq(excess, 0.0, far, xtol=1e-14 * abs(far), rtol=1e-12))
    raise AssertionError(f"K′ does not reach {deviation} within the support {cgf.support}")


def cornish_fisher(z: float, law: Moments) -> float:
    r"""Normal score of z after the Edgeworth correction for skewness s and kurtosis k of its law.

    .. math:: z - \tfrac{s}{6}(z^2 - 1) - \tfrac{k}{24}(z^3 - 3z) + \tfrac{s^2}{36}(4z^3 - 7z)

    Source: Cornish and Fisher (1938), doi:10.2307/1400905.

    Example:
        >>> law = Moments(0.0, 1.0, 0.6, 3.54)  # those of χ² with 22.2 degrees of freedom
        >>> round(cornish_fisher(3.0, law), 2)
        2.67
    """
    s, k = law.skewness, law.excess_kurtosis
    w = z - s * (z**2 - 1) / 6 - k * (z**3 - 3 * z) / 24 + s**2 * (4 * z**3 - 7 * z) / 36
    return _kept(w, z)


def _kept(score: float, raw: float) -> float:
    """The corrected score, away from the middle never pulled below half of the raw one.

    Far out Cornish and Fisher's expansion turns back, and at the largest of a few values v = 0.
    In the middle nothing is changed: the score of a mean at its expectation has the sign of the
    skewness, so that scores average to zero.
    """
    return score if abs(raw) <= 1 else math.copysign(max(score * raw / abs(raw), abs(raw) / 2), raw)


def normal_p(score: float) -> float:
    """Two-sided normal p-value; NaN and infinite scores count as 0.

    Example:
        >>> round(normal_p(-1.959964), 6), normal_p(math.nan)
        (0.05, 0.0)
    """
    return float(2 * stats.norm.sf(abs(score))) if math.isfinite(score) else 0.0


def box_freedom(R: int, excess_kurtosis: float) -> float:
    r"""Degrees of freedom of the mean square of R values about their known mean.

    .. math:: \nu = 2R / (e + 2)

    χ²_ν / ν has the mean and the variance of that mean square over σ², for any excess kurtosis e.

    Source: Box (1953), doi:10.2307/2333350.

    Example:
        >>> box_freedom(100, 0.0), box_freedom(100, 12.0)
        (100.0, 14.285714285714286)
    """
    # A two-point law (n = 2) has e = −2: its mean square is a constant.
    return max(2 * R / max(excess_kurtosis + 2, 1e-6), 1.0)


def box_score(ratio: float, freedom: float) -> float:
    """Normal score of a mean square over its expectation, as χ²_ν / ν; NaN stays NaN.

    Example:
        >>> median = stats.chi2.isf(0.5, 10) / 10
        >>> bool(abs(box_score(median, 10)) < 1e-12), round(box_score(2.0, 10.0), 2)
        (True, 1.89)
    """
    if not ratio >= 0:
        return math.nan
    lower, upper = (
        float(tail(freedom * ratio, freedom)) for tail in (stats.chi2.cdf, stats.chi2.sf)
    )
    return float(stats.norm.isf(upper) if upper < lower else stats.norm.ppf(lower))


def _spread(holds: bool, required: str) -> None:
    if not holds:
        raise ValueError(f"A cgf needs {required}; compare a constant exactly instead.")
