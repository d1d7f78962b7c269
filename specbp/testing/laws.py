r"""The law of captured probes against rademacher, sphere or gaussian: checks with code P1.

An estimator can have the right mean on one matrix with the wrong probes. Captured probes
(`specbp.testing.capture`) are judged directly: their support, mean, covariance and fourth moment
against the exact null distribution of each law with E[x xᵀ] = I. Duplicates among them (P2) and
reproducibility (P3) are in `specbp.testing.repeats`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from specbp.testing import outcome, tails
from specbp.testing.outcome import Check, Level, normal_score
from specbp.testing.pvalues import box_freedom, box_score, cornish_fisher, normal_p
from specbp.testing.repeats import duplicate_checks, reproducibility_checks

__all__ = ["LAWS", "duplicate_checks", "law_checks", "recognise_law", "reproducibility_checks"]

LAWS = ("rademacher", "sphere", "gaussian")
_DECISIVE = ("P1 support", "P1 fourth moment", "P1 norms")
LONG_TAIL = 0.01  # skewness from which the lognormal fit is used, and well conditioned
RECOGNISED = 0.5  # relative error of E x⁴ that must be visible before a law is named
END_OUT_OF_SIGHT = 0.3  # skewness up to which Pearson's lower end is at −6.7 sd or beyond
_Random = Callable[[np.ndarray, str, Level], Check]


def law_checks(probes: Tensor, law: str, level: Level, *, up_to_scale: bool = False) -> list[Check]:
    r"""Support or norm, mean, covariance and fourth moment of probes against their law.

    .. math:: \bar x, \qquad \max_j |\bar x_j|, \qquad
        U = \tfrac1P \sum_{p \ne q} \sum_{j<k} x_{pj} x_{pk} x_{qj} x_{qk},
        \qquad \max_{j<k} |C_{jk}|, \qquad \tfrac1P \sum_p \sum_j x_{pj}^4

    U is the sum of all squared correlations without its diagonal: E U = 0 and Var U =
    2K v² (P − 1)/P exactly, K = n(n − 1)/2, v = E[x_j² x_k²], third moment known too. Faults make
    it larger, and it is tested in its upper tail; as its lower end is hard, the lower tail is used
    only where the end is out of sight. Gaussian probes are normalised before products are taken.
    Support and norm of signs and of the sphere are exact; the other checks share `level.alpha`
    equally, so that a correct sampler passes the whole list with probability 1 − alpha. Signs with
    P(+1) = 0.51 have a mean of 0.02: the example shows how many entries the pooled mean needs to
    see that with probability 0.95.

    Args:
        probes: P independent vectors, (P, n), P ≥ 2. Columns of one orthogonal block are not:
            `specbp.testing.block_laws` judges blocks.
        law: "rademacher", "sphere" (|x|² = n) or "gaussian".
        level: `margin` is for the mean of one coordinate, the correlation of one pair and the
            relative fourth moment; for the pooled mean and the root mean square correlation, where
            n times as much data speaks, it is a tenth.
        up_to_scale: Divide by the root mean square first, for probes caught after a normalisation.

    Raises:
        ValueError: The shape is not (P, n) with P ≥ 2, or the law is unknown.

    Source: degenerate U-statistics: Chen, Zhang and Zhong (2010), JASA 105,
    doi:10.1198/jasa.2010.tm09560; three-moment fit: Pearson (1895), type III.

    Example:
        >>> from specbp import generator_for, rademacher
        >>> X = rademacher(8, 4000, generator=generator_for("doc")).mT
        >>> [check.verdict for check in law_checks(X, "rademacher", Level(1e-3, 0.3))]
        ['PASS', 'PASS', 'PASS', 'PASS', 'PASS']
        >>> math.ceil((tails.shift(1e-3 / 4) / 0.02) ** 2)  # 1101 probes of length 64
        70414
    """
    if law not in LAWS:
        raise ValueError(f"law must be one of {LAWS}, of blocks see block_law_checks; got {law!r}.")
    if probes.ndim != 2 or len(probes) < 2:
        raise ValueError(f"Probes are (P, n) with P ≥ 2, got shape {tuple(probes.shape)}.")
    x = probes.detach().to("cpu", torch.float64).numpy()
    if not np.isfinite(x).all():
        return [outcome.broken("P1 support", "probes are finite", "NaN or inf among the probes")]
    eps = torch.finfo(probes.dtype).eps
    if up_to_scale:
        x = x / math.sqrt(float(np.mean(x**2)))
    random: list[_Random] = [_pooled_mean, coordinate_mean]
    random += [_covariance, _largest_correlation] if x.shape[1] > 1 else []
    random += [_fourth_moment] if law != "rademacher" else []
    random += [_norms] if law == "gaussian" else []
    random += [_second_moment] if law == "gaussian" and not up_to_scale else []
    share = replace(level, alpha=level.alpha / len(random))
    return [*support(x, law, eps), *(check(x, law, share) for check in random)]


def support(x: np.ndarray, law: str, eps: float) -> list[Check]:
    """What holds exactly for every probe (row of x): signs, or the norm; nothing for "gaussian"."""
    if law == "rademacher":
        error = float(np.abs(np.abs(x) - 1).max())
        return [outcome.within("P1 support", "every entry is +1 or −1", error, 8 * eps, "units")]
    if law == "sphere":
        n = x.shape[1]
        error = float(np.abs((x**2).sum(1) / n - 1).max())
        limit = 8 * n * eps  # a norm is a sum of n squares
        return [outcome.within("P1 support", "every probe has norm √n", error, limit, "relative")]
    return []


def _pooled_mean(x: np.ndarray, law: str, level: Level) -> Check:
    P, n = x.shape
    p = tails.sum_of_entries(float(x.sum()), P * n, law, tails.coordinate(n, law), P)
    return outcome.judged(
        "P1 pooled mean",
        "entries have mean zero",
        float(x.mean()),
        0.0,
        p=p,
        detectable=tails.shift(level.alpha) / math.sqrt(P * n),
        level=replace(level, margin=level.margin / 10),
        size=P * n,
        unit="mean of all entries; signs with P(+1) = q have mean 2q − 1",
    )


def coordinate_mean(x: np.ndarray, law: str, level: Level) -> Check:
    """The largest coordinate of the mean of the rows of x, n tests by Bonferroni."""
    P, n = x.shape
    worst = float(np.abs(x.sum(0)).max())
    p = min(1.0, n * tails.sum_of_entries(worst, P, law, tails.coordinate(n, law), P))
    return outcome.judged(
        "P1 coordinate mean",
        "every coordinate has mean zero",
        worst / P,
        0.0,
        p=p,
        detectable=tails.shift(level.alpha / n) / math.sqrt(P),
        level=level,
        size=P,
        unit=f"largest mean of {n} coordinates",
    )


def _covariance(x: np.ndarray, law: str, level: Level) -> Check:
    """Upper-tailed where few pairs give U a lower end that a correct sampler reaches."""
    x, law = _directions(x, law)
    P, n = x.shape
    K, v = n * (n - 1) // 2, tails.mixed_moment(n, 2, law)
    C = x.T @ x
    off = (np.sum(C**2) - np.sum(np.diagonal(C) ** 2)) / 2
    own = (np.sum(np.sum(x**2, 1) ** 2) - np.sum(x**4)) / 2
    U = float(off - own) / P
    variance = 2 * K * v**2 * (P - 1) / P
    triangles = math.comb(n, 3) * tails.mixed_moment(n, 3, law) ** 2
    skewness = (P - 1) / P**2 * (24 * triangles + 8 * (P - 2) * K * v**3) / variance**1.5
    rms = math.sqrt(abs(U) / (P - 1) / K) / v
    sides, z = 2 if skewness <= END_OUT_OF_SIGHT else 1, U / math.sqrt(variance)
    # Orthogonal probes have a U that is too small.
    p = tails.pearson(z, skewness) if sides == 1 else tails.pearson_both(z, skewness)
    return outcome.judged(
        "P1 covariance",
        "coordinates are uncorrelated and probes independent",
        math.copysign(rms, U),
        0.0,
        p=p,
        detectable=tails.correlation_seen(P, K, v, skewness, level.alpha / sides),
        level=replace(level, margin=level.margin / 10),
        size=P,
        unit=f"root mean square correlation of {K} pairs, negative if smaller than by chance",
    )


def _directions(x: np.ndarray, law: str) -> tuple[np.ndarray, str]:
    """Gaussian probes on their sphere: products of entries then have short tails."""
    if law != "gaussian":
        return x, law
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    return x * (math.sqrt(x.shape[1]) / np.maximum(norms, np.finfo(float).tiny)), "sphere"


def _largest_correlation(x: np.ndarray, law: str, level: Level) -> Check:
    x, law = _directions(x, law)
    P, n = x.shape
    K, v = n * (n - 1) // 2, tails.mixed_moment(n, 2, law)
    C = np.abs(x.T @ x)
    np.fill_diagonal(C, 0.0)
    worst = float(C.max())
    p = min(1.0, K * tails.sum_of_entries(worst, P, law, tails.product(n, law), P))
    return outcome.judged(
        "P1 largest correlation",
        "no pair of coordinates is correlated",
        worst / P / math.sqrt(v),
        0.0,
        p=p,
        detectable=tails.shift(level.alpha / K) / math.sqrt(P),
        level=level,
        size=P,
        unit=f"largest correlation of {K} pairs",
    )


def _fourth_moment(x: np.ndarray, law: str, level: Level) -> Check:
    P, n = x.shape
    null = tails.fourth_powers(n, law).averaged(P)
    measured = float(np.mean(np.sum(x**4, 1)))
    if null.variance <= 0:  # n = 1 on the sphere
        error = abs(measured / null.mean - 1)
        return outcome.within("P1 fourth moment", "E x⁴ is that of the law", error, 1e-12, "ratio")
    sd = math.sqrt(null.variance)
    z, seen = (measured - null.mean) / sd, tails.shift(level.alpha)
    if null.skewness > LONG_TAIL:
        score = tails.lognormal_score(z, null.skewness)
        seen += tails.lognormal_value(normal_score(level.alpha), null.skewness)
        seen -= normal_score(level.alpha)
    else:
        score = cornish_fisher(z, null)
    return outcome.judged(
        "P1 fourth moment",
        "E x⁴ is that of the law",
        measured / null.mean,
        1.0,
        p=normal_p(score),
        detectable=seen * sd / null.mean,
        level=level,
        size=P,
        unit="ratio",
    )


def _second_moment(x: np.ndarray, _law: str, level: Level) -> Check:
    N = x.size
    ratio = float(np.mean(x**2))
    return outcome.judged(
        "P1 second moment",
        "entries have variance one",
        ratio,
        1.0,
        p=normal_p(box_score(ratio, N)),
        detectable=tails.shift(level.alpha) * math.sqrt(2 / N),
        level=level,
        size=N,
        unit="ratio",
    )


def recognise_law(probes: Tensor) -> str | None:
    """The law that probes come from, up to a common scale, or None.

    Entries of one modulus are "rademacher"; vectors of one length whose fourth moment is that of
    the sphere are "sphere"; "gaussian" is recognised by second and fourth moments of the norms and
    entries. Level 1e-6: a correct sampler is misjudged that often. Where there are too few probes
    to see a fourth moment off by half, or norms that do not scatter, the answer is None: ten
    vectors of any law look Gaussian. Gaussian vectors want P n of 3000 or so.

    Args:
        probes: (P, n), P ≥ 2.

    Raises:
        ValueError: The shape is not (P, n) with P ≥ 2.

    Source: the moments of `specbp.testing.tails`.

    Example:
        >>> from specbp import gaussian, generator_for
        >>> recognise_law(gaussian(16, 200, generator=generator_for("doc")).mT)
        'gaussian'
    """
    level = Level(1e-6, RECOGNISED)
    for law in LAWS:
        found = law_checks(probes, law, level, up_to_scale=True)
        decisive = [check for check in found if check.name in _DECISIVE]
        if all(check.verdict == outcome.PASS for check in decisive):
            return law
    return None


def _norms(x: np.ndarray, _law: str, level: Level) -> Check:
    """Squared norms of Gaussian vectors, over their mean, scatter like χ²_n / n."""
    P, n = x.shape
    squares = (x**2).sum(1)
    ratio = float(squares.var(ddof=1) / squares.mean() ** 2 / (2 / n))
    freedom = box_freedom(P, 12 / n)  # χ²_n has excess kurtosis 12 / n
    return outcome.judged(
        "P1 norms",
        "squared norms scatter like χ²",
        ratio,
        1.0,
        p=normal_p(box_score(ratio, freedom)),
        detectable=tails.shift(level.alpha) * math.sqrt(2 / freedom),
        level=replace(level, margin=1.0),  # the sphere has a ratio of 0
        size=P,
        unit="ratio of variances",
    )
