r"""Evidence that may be looked at after every value: e-processes, and a sequence of intervals.

An e-process is a nonnegative process whose expectation is at most one at any stopping time while
nothing is wrong, so that it ever reaches 1/α with probability at most α (Ville 1939). Values are
standardised, x = (T − μ)/σ, with the mean and the standard deviation of the law that is claimed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from specbp.exact import Moments
from specbp.testing.pvalues import Cgf

Array = npt.NDArray[np.float64]
LogMgf = Callable[[float], float]


def normal_log_mgf(s: float) -> float:
    """ψ(s) = s²/2: exact for normal values, and a bound for sub-Gaussian ones."""
    return s**2 / 2


def standardised(cgf: Cgf) -> LogMgf:
    r"""ψ of (T − E T)/σ from the exact cumulant generating function of T.

    .. math:: \psi(s) = K(s / \sigma)

    Args:
        cgf: Such as `gaussian_cgf(eigenvalues, m)` or `enumerated_cgf(values, weights, m)`.

    Example:
        >>> from specbp.testing.pvalues import enumerated_cgf
        >>> psi = standardised(enumerated_cgf([-3.0, 5.0]))  # a fair sign: log cosh s
        >>> bool(abs(psi(1.0) - math.log(math.cosh(1.0))) < 1e-15)
        True
    """
    sd = math.sqrt(cgf.law.variance)
    return lambda s: cgf(s / sd)


def cumulant_log_mgf(law: Moments, largest: float = 1.0) -> LogMgf:
    r"""ψ to fourth order, for laws whose moments are known and whose outcomes are not.

    .. math:: \psi(s) = \frac{s^2}2 + \gamma \frac{s^3}6 + \max(\kappa, 0) \frac{s^4}{24},
              \quad |s| \le \text{largest}

    An approximation, not a bound: cumulants from the fifth on count as zero, which matters little
    for |s| ≤ 1 when the values are means of several probes.

    Args:
        law: Moments of one value.
        largest: |s| beyond which ψ counts as infinite and is not used.

    Raises:
        ValueError: If the law has no variance.

    Example:
        >>> psi = cumulant_log_mgf(Moments(mean=0.0, variance=4.0, third=0.0, fourth=48.0))
        >>> psi(0.5), psi(2.0)  # of a normal law
        (0.125, inf)
    """
    if not law.variance > 0:
        raise ValueError("The law has no variance: compare the values exactly instead.")
    skewness, kurtosis = law.skewness, max(law.excess_kurtosis, 0.0)

    def psi(s: float) -> float:
        inside = abs(s) <= largest
        return s**2 / 2 + skewness * s**3 / 6 + kurtosis * s**4 / 24 if inside else math.inf

    return psi


@dataclass(frozen=True)
class NormalMixture:
    r"""Intervals for a mean, standard deviation known, that hold at all times together.

    .. math:: |\bar x_t| \le \frac1t \sqrt{(t + \rho) \log\frac{t + \rho}{\rho \alpha^2}},
              \quad \rho = \frac{t^*}{y - 1}, \quad y - \log y = 1 + 2 \log\tfrac1\alpha

    Exact for normal (and sub-Gaussian) values; of others the first few looks err more often.

    Attributes:
        alpha: Probability that any of the intervals misses.
        t_opt: The number of values t* for which ρ is best; the half-width is √(y/t*) there.

    Raises:
        ValueError: If alpha is not in (0, 1) or t_opt is not positive.

    Example:
        >>> intervals = NormalMixture(alpha=0.01, t_opt=100)
        >>> intervals.radius(np.array([10, 100, 1000])).round(3).tolist()
        [1.36, 0.357, 0.119]

    Source: Robbins, Ann. Math. Statist. 41 (1970) 1397–1409; Howard, Ramdas, McAuliffe and Sekhon,
    Ann. Statist. 49 (2021), arXiv:1810.08240 (the choice of ρ).
    """

    alpha: float
    t_opt: float

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1 or not self.t_opt > 0:
            raise ValueError(
                f"alpha lies in (0, 1) and t_opt > 0, got {self.alpha} and {self.t_opt}."
            )

    @property
    def rho(self) -> float:
        """Precision of the mixing law that makes t_opt the best time."""
        return self.t_opt / (optimal_ratio(self.alpha) - 1)

    def radius(self, t: npt.ArrayLike) -> Array:
        """Half-width of the interval of the mean of t standardised values, same shape as t."""
        t = np.asarray(t, dtype=np.float64)
        width = (t + self.rho) * np.log((t + self.rho) / (self.rho * self.alpha**2))
        return np.asarray(np.sqrt(width) / t)

    def intervals(self, values: npt.ArrayLike, sd: float) -> Array:
        """Interval of the mean after each of the values (R,), shape (R, 2)."""
        t = np.arange(1, np.size(values) + 1)
        centre, half = np.cumsum(values) / t, sd * self.radius(t)
        return np.stack([centre - half, centre + half], axis=-1)


def optimal_ratio(alpha: float) -> float:
    """The y of `NormalMixture`: a mean of t* values is known to within √(y/t*)."""
    return float(-special.lambertw(-(alpha**2) / math.e, -1).real)


class MixtureProcess:
    r"""E-process against a shift of the mean: a mixture over the exponential tilts of the law.

    .. math:: E_t = \frac1{2K} \sum_{\pm s_k} \exp\bigl(s S_t - t \psi(s)\bigr),
              \quad S_t = \textstyle\sum_{i \le t} x_i

    Valid at every t, for tails of any weight, as far as ψ bounds the log-mgf of independent
    standardised values; tilts at which ψ is infinite are left out.

    Args:
        log_mgf: ψ, infinite where it is not known to be finite.
        smallest: Least tilt; shifts of about this many standard deviations are found last.
        largest: Greatest tilt.
        terms: K, tilts of each sign in geometric progression.
        signs: (1, -1), or one of the two for a one-sided process.

    Raises:
        ValueError: If ψ is finite at none of the tilts.

    Example:
        >>> process = MixtureProcess(normal_log_mgf)
        >>> bool(process.extend(np.full(60, 0.7))[-1] > math.log(1000)), process.count
        (True, 60)

    Source: Robbins and Siegmund, Ann. Math. Statist. 41 (1970) 1410–1429; Ramdas, Grünwald, Vovk
    and Shafer, Statist. Sci. 38 (2023), arXiv:2210.01948.
    """

    def __init__(
        self,
        log_mgf: LogMgf = normal_log_mgf,
        *,
        smallest: float = 0.03,
        largest: float = 2.0,
        terms: int = 8,
        signs: tuple[int, ...] = (1, -1),
    ):
        s = np.multiply.outer(signs, np.geomspace(smallest, largest, terms)).ravel()
        psi = np.array([log_mgf(float(v)) for v in s])
        known = np.isfinite(psi)
        if not known.any():
            raise ValueError(
                f"ψ is finite at no tilt of {s.min():g} … {s.max():g}: choose a smaller `smallest`."
            )
        self._s, self._psi = s[known], psi[known]
        self._total, self.count, self.log_e, self.peak = 0.0, 0, 0.0, 0.0

    def extend(self, x: npt.ArrayLike) -> Array:
        """Take further standardised values, (R,); log E after each of them, (R,).

        Raises:
            ValueError: If a value is not finite.
        """
        x = _finite(x)
        t = self.count + np.arange(1, len(x) + 1)
        S = self._total + np.cumsum(x)
        exponents = np.multiply.outer(S, self._s) - np.multiply.outer(t, self._psi)
        path = special.logsumexp(exponents, axis=-1) - math.log(len(self._s))
        if len(x):
            self.count, self._total, self.log_e = int(t[-1]), float(S[-1]), float(path[-1])
            self.peak = max(self.peak, float(path.max()))
        return np.asarray(path)


class VarianceProcess:
    r"""E-process against a variance other than σ², from y = x², half of it for either side.

    .. math:: E_t = \frac1{2K} \sum_k \prod_{i \le t} \bigl(1 + \lambda_k (y_i - 1)\bigr)
              + \frac1{2K} \sum_k \prod_{i \le t}
              \frac{e^{-\ell_k y_i}}{1 - \ell_k + \tfrac12 \ell_k^2 E y^2}

    Valid for independent values of known mean with E y = 1, whatever their tails: the first half
    needs nothing else. The second, which grows when the variance is too small, needs an upper bound
    of E y²: since e^(−u) ≤ 1 − u + u²/2 for u ≥ 0, each factor has expectation at most one. No
    value is cut off, so no truncated mean has to be known. Where tails are heavy the bound is
    loose: the exact E e^(−ℓy) in place of the denominator finds small variances sooner.

    Args:
        excess_kurtosis: That of one value, E y² − 3, or an upper bound.
        log_laplace: ℓ -> log E e^(−ℓy), or an upper bound, where the law is known.
        terms: K, bets on either side in geometric progression.

    Raises:
        ValueError: If excess_kurtosis is not a number ≥ −2, the least there is.

    Example:
        >>> process = VarianceProcess(excess_kurtosis=0.0)
        >>> bool(process.extend([0.5, -0.5] * 60)[-1] > math.log(1000))      # variance 1/4
        True

    Source: the first half is the betting process of Waudby-Smith and Ramdas, J. R. Statist. Soc. B
    86 (2024) 1–27, arXiv:2010.09686; the second is the bound on a lower tail by second moments
    (Maurer 2003, J. Inequal. Pure Appl. Math. 4(1), 15) as a process.
    """

    def __init__(
        self, excess_kurtosis: float, *, log_laplace: LogMgf | None = None, terms: int = 10
    ):
        if not excess_kurtosis >= -2:
            raise ValueError(f"An excess kurtosis is ≥ -2, got {excess_kurtosis}.")
        fourth = max(excess_kurtosis + 3, 1.0)
        self._up = np.geomspace(0.01, 0.7, terms)
        # The bound is least at 1 / E y²: larger bets only lose.
        self._down = np.geomspace(0.01, 0.7, terms) if log_laplace else self._up / (0.7 * fourth)
        bound = np.log1p(-self._down + self._down**2 * fourth / 2)
        exact = [log_laplace(float(v)) for v in self._down] if log_laplace else bound
        self._cost = np.minimum(exact, bound)
        self._logs, self._total, self.count, self.log_e = np.zeros(terms), 0.0, 0, 0.0

    def extend(self, x: npt.ArrayLike) -> Array:
        """Take further standardised values, (R,); log E after each of them, (R,).

        Raises:
            ValueError: If a value is not finite.
        """
        y = _finite(x) ** 2
        t = self.count + np.arange(1, len(y) + 1)
        up = self._logs + np.cumsum(np.log1p(np.multiply.outer(y - 1, self._up)), axis=0)
        total = self._total + np.cumsum(y)
        down = -np.multiply.outer(total, self._down) - np.multiply.outer(t, self._cost)
        path = special.logsumexp(np.concatenate([up, down], axis=-1), axis=-1)
        path = np.asarray(path) - math.log(2 * len(self._up))
        if len(y):
            self._logs, self._total = up[-1], float(total[-1])
            self.count, self.log_e = int(t[-1]), float(path[-1])
        return path


class ShiryaevRoberts:
    r"""E-detector over nights: alarms when evidence since any unknown night is large.

    .. math:: M \leftarrow (M + 1)\, e, \quad \text{alarm while } M \ge \text{threshold}

    While every e has conditional expectation at most one, M minus the number of nights is a
    supermartingale: the first alarm comes after `threshold` nights or more, on average. For several
    e-values a night, alternatives of one mixture, M is kept for each and their mean is compared.

    Args:
        threshold: Least mean number of nights until a false alarm.
        state: M of an earlier night, a number or a list, to go on from.

    Raises:
        ValueError: If the threshold is not positive, or the state is negative or NaN.

    Example:
        >>> detector = ShiryaevRoberts(threshold=1000)
        >>> [detector.update(e) for e in (1.0, 0.5, 30.0, 60.0)], detector.value
        ([False, False, False, True], 3660.0)

    Source: Shin, Ramdas and Rinaldo, New England J. Statist. Data Sci. 2 (2024), arXiv:2203.03532.
    """

    def __init__(self, threshold: float = 1000.0, state: npt.ArrayLike = 0.0):
        if not threshold > 0:
            raise ValueError(f"A threshold is positive, got {threshold}.")
        self.threshold, self.state = threshold, _nonnegative(state, "state")

    @property
    def value(self) -> float:
        """M, the mean over the alternatives."""
        return float(self.state.mean())

    def update(self, e: npt.ArrayLike) -> bool:
        """Count one night with the e-value(s) e, of the shape of the state; whether to alarm.

        Raises:
            ValueError: If an e-value is negative or NaN.
        """
        # Infinite evidence stays infinite, also if later nights say nothing is wrong.
        with np.errstate(invalid="ignore", over="ignore"):
            product = (self.state + 1) * _nonnegative(e, "e-value")
        self.state = np.where(np.isinf(self.state), np.inf, product)
        return self.value >= self.threshold


def _finite(x: npt.ArrayLike) -> Array:
    x = np.asarray(x, dtype=np.float64)
    if x.ndim != 1 or not np.isfinite(x).all():
        raise ValueError("Values are one array (R,) of finite numbers: report a NaN as a failure.")
    return x


def _nonnegative(e: npt.ArrayLike, what: str) -> Array:
    e = np.asarray(e, dtype=np.float64)
    if not (e >= 0).all():
        raise ValueError(f"An {what} of evidence is ≥ 0, got {e}.")
    return e
