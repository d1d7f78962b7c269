r"""The law of blocks of dependent probes: checks with code P1, beside those of `laws`.

Probes of one block of these laws depend on each other, and their dependence is the point: it is
what lowers the variance. Support, norms and orthogonality are judged exactly on all probes, chance
on what is independent: one probe of each block, or what each block draws.

| law | exact | at a level |
|---|---|---|
| orthogonal | norms, orthogonal | a probe of each block is on the sphere |
| hadamard | signs, orthogonal | a probe of each block is Rademacher; correlations of products |
| mixed_unit | rows of √n F up to signs, orthogonal | signs; frequencies; differences |
| unit_vector | one entry √n, orthogonal | frequencies; differences |
| antithetic | signs, balance of s | a probe of a pair is Rademacher; means, correlations of s |
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from scipy import fft, optimize, stats
from torch import Tensor

from specbp.testing import outcome, tails
from specbp.testing.laws import coordinate_mean, law_checks, support
from specbp.testing.outcome import POWER, Check, Level

__all__ = ["BLOCK_LAWS", "block_law_checks"]

# Relative root mean square deviation of frequencies: a fifth of all indices left out.
FREQUENCY_MARGIN = 0.5
LEAST_EXPECTED = 5  # counts of a cell from which χ² is close


def block_law_checks(
    blocks: Tensor, law: str, level: Level, *, up_to_scale: bool = False
) -> list[Check]:
    r"""Judge independent blocks of dependent probes against their law.

    .. math:: X^\top X = n I, \qquad
        \operatorname{E}[x_i y_i \, x_j y_j] = -\tfrac{1}{n - 1}
        \text{ for two columns } x, y \text{ of D H}, \qquad
        \chi^2 = \tfrac{n - 1}{n - m} \textstyle\sum_j \tfrac{(O_j - E_j)^2}{E_j}

    For `antithetic` pairs xᵢyᵢ is the sign sᵢ: that correlation is theirs too, −1/n for odd n. O
    counts the indices j that were drawn, without replacement within a block of m, E = Rm/n of R
    blocks; differences of two indices of a block are counted in the same way, which shows
    neighbours that come together. The mean 1/√n and the covariance I of `unit_vector` probes are
    statements about these frequencies. Rows 0 and n/2 of the transform F of `mixed_unit` are equal
    up to signs and are counted as one.

    Args:
        blocks: R independent blocks, (R, n, m), R ≥ 2; m even for "antithetic".
        law: "orthogonal", "hadamard", "mixed_unit", "unit_vector" or "antithetic".
        level: alpha is shared by all random checks; margin as in `law_checks`, of frequencies a
            relative root mean square deviation of 0.5. Below five expected counts in a cell they
            cannot say.
        up_to_scale: Divide by the root mean square first, for probes caught after a normalisation.

    Raises:
        ValueError: The shape is not (R, n, m) with R ≥ 2, or the law is not one of blocks.

    Source: Pearson (1900), doi:10.1080/14786440009463897; correction for finite populations:
    Cochran, Sampling Techniques (1977), chapter 2.

    Example:
        >>> from specbp import generator_for
        >>> from specbp.probes import hadamard
        >>> X = hadamard(8, 2, generator=generator_for("doc"), batch_shape=(5000,))
        >>> for check in block_law_checks(X, "hadamard", Level(1e-3, 0.4)):
        ...     print(check.verdict, check.name)
        PASS P1 support
        PASS P1 orthogonal
        PASS P1 pooled mean
        PASS P1 coordinate mean
        PASS P1 covariance
        PASS P1 largest correlation
        PASS P1 products
    """
    if law not in BLOCK_LAWS:
        raise ValueError(f"law must be one of {BLOCK_LAWS}, got {law!r}.")
    if blocks.ndim != 3 or len(blocks) < 2 or (law == "antithetic" and blocks.shape[2] % 2):
        even = ", m even" if law == "antithetic" else ""
        shape = tuple(blocks.shape)
        raise ValueError(f"Blocks are (R, n, m) with R ≥ 2{even}, got shape {shape}.")
    rows = blocks.detach().to("cpu", torch.float64).mT.numpy()
    if not np.isfinite(rows).all():
        return [outcome.broken("P1 support", "probes are finite", "NaN or inf among the probes")]
    if up_to_scale:
        rows = rows / math.sqrt(float(np.mean(rows**2)))
    return _JUDGES[law](rows, level, torch.finfo(blocks.dtype).eps)


def _orthogonal(rows: np.ndarray, level: Level, eps: float) -> list[Check]:
    exact = [*support(rows.reshape(-1, rows.shape[2]), "sphere", eps), _gram(rows, eps)]
    return [*exact, *_marginal(_one_of_each(rows), "sphere", level)]


def _hadamard(rows: np.ndarray, level: Level, eps: float) -> list[Check]:
    m, n = rows.shape[1:]
    half = replace(level, alpha=level.alpha / 2)
    exact = [*support(rows.reshape(-1, n), "rademacher", eps), _gram(rows, eps)]
    random = _marginal(_one_of_each(rows), "rademacher", half)
    if m > 1 and n > 1:
        products = _one_of_each(rows) * _one_of_each(np.roll(rows, 1, axis=1))
        random.append(_products(products, -1 / (n - 1), half))
    return [*exact, *random]


def _mixed_unit(rows: np.ndarray, level: Level, eps: float) -> list[Check]:
    n, third = rows.shape[2], replace(level, alpha=level.alpha / 3)
    sizes = np.abs(fft.dct(np.eye(n), axis=0, norm="ortho"))
    found = np.abs(rows) / math.sqrt(n)
    # By Cauchy and Schwarz, the row that was drawn has the largest inner product.
    index = (found @ sizes.T).argmax(-1)
    error = float(np.abs(found - sizes[index]).max())
    text, limit = "every probe is √n times a row of the transform, up to signs", 8 * n * eps
    exact = [outcome.within("P1 support", text, error, limit, "units"), _gram(rows, eps)]
    ways = np.ones(n)
    if n % 2 == 0:
        index[index == n // 2] = 0
        ways[[0, n // 2]] = 2, 0
    signs = _visible_signs(rows, found.min(-1) > 1e-6 / n)
    random = _marginal(signs, "rademacher", third) if len(signs) > 1 else []
    return [*exact, *random, *_indices(index, ways, third)]


def _unit_vector(rows: np.ndarray, level: Level, eps: float) -> list[Check]:
    n, half = rows.shape[2], replace(level, alpha=level.alpha / 2)
    index = np.abs(rows).argmax(-1)
    error = float(np.abs(rows / math.sqrt(n) - np.eye(n)[index]).max())
    text = "every probe has one entry, √n"
    exact = [outcome.within("P1 support", text, error, 8 * eps, "relative"), _gram(rows, eps)]
    return [*exact, *_indices(index, np.ones(n), half)]


def _antithetic(rows: np.ndarray, level: Level, eps: float) -> list[Check]:
    n = rows.shape[2]
    pairs = rows.reshape(-1, 2, n)
    odd, s = n % 2, pairs[:, 0] * pairs[:, 1]
    share = replace(level, alpha=level.alpha / (3 + odd))
    worst = float(np.abs(np.abs(s.sum(-1)) - odd).max())
    text = f"the members of a pair have the inner product {'±1' if odd else 0}"
    exact = [
        *support(rows.reshape(-1, n), "rademacher", eps),
        outcome.within("P1 balance", text, worst, 8 * n * eps, "units"),
    ]
    random = [*_marginal(_one_of_each(pairs), "rademacher", share)]
    means = coordinate_mean(s, "rademacher", share)
    random.append(replace(means, name="P1 s mean", claim="every sign of s has mean zero"))
    if odd:
        total = coordinate_mean(s.sum(-1, keepdims=True), "rademacher", share)
        text = "floor and ceiling of n/2 are equally likely"
        random.append(replace(total, name="P1 balance mean", claim=text))
    if n > 1:
        random.append(_products(s, (odd - n) / (n * (n - 1)), share))
    return [*exact, *random]


_JUDGES: dict[str, Callable[[np.ndarray, Level, float], list[Check]]] = {
    "orthogonal": _orthogonal,
    "hadamard": _hadamard,
    "mixed_unit": _mixed_unit,
    "unit_vector": _unit_vector,
    "antithetic": _antithetic,
}
BLOCK_LAWS = tuple(_JUDGES)


def _one_of_each(rows: np.ndarray) -> np.ndarray:
    """Row r mod m of block r, (R, m, …) -> (R, …): independent, and no row is left out."""
    block = np.arange(len(rows))
    return rows[block, block % rows.shape[1]]


def _visible_signs(rows: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """Signs of a visible row of each block that has one: a transform that is 0 hides a sign of D.

    Half of the rows of a transform of odd order vanish in the middle.
    """
    R, m = visible.shape
    turn = (np.arange(R)[:, None] + np.arange(m)) % m
    shown = np.take_along_axis(visible, turn, 1)
    row = np.take_along_axis(turn, shown.argmax(1)[:, None], 1)[:, 0]
    return np.asarray(np.sign(rows[np.arange(R), row])[shown.any(1)])


def _marginal(x: np.ndarray, law: str, level: Level) -> list[Check]:
    """The random checks of independent vectors; their support has been judged with all others."""
    checks = law_checks(torch.from_numpy(x), law, level)
    return [check for check in checks if check.name != "P1 support"]


def _gram(rows: np.ndarray, eps: float) -> Check:
    _, m, n = rows.shape
    error = float(np.abs(rows @ rows.transpose(0, 2, 1) / n - np.eye(m)).max())
    text = "the probes of a block are orthogonal, of length √n"
    # An entry is a sum of n products, over n, of vectors that are normalised to rounding.
    return outcome.within("P1 orthogonal", text, error, 8 * n * eps, "relative")


def _products(s: np.ndarray, correlation: float, level: Level) -> Check:
    """Correlations of the signs s = x ∘ y of two probes: every pair is binomial, exactly."""
    R, n = s.shape
    off = (s.T @ s)[np.triu_indices(n, 1)]
    K, chance = len(off), (1 + correlation) / 2
    ups = np.rint((R + off) / 2)
    tail = min(
        stats.binom.cdf(ups.min(), R, chance),
        stats.binom.sf(ups.max() - 1, R, chance),
    )
    worst = float(off[np.abs(off / R - correlation).argmax()] / R)
    return outcome.judged(
        "P1 products",
        "products of two probes of a block have the correlations of the law",
        worst,
        correlation,
        p=min(1.0, 2 * K * float(tail)),
        detectable=tails.shift(level.alpha / K) / math.sqrt(R),
        level=level,
        size=R,
        unit=f"the furthest of {K} correlations",
    )


def _indices(index: np.ndarray, ways: np.ndarray, level: Level) -> list[Check]:
    """Frequencies of the indices (R, m), and of the differences of two of each block.

    Index j stands for ways[j] of n rows; differences are taken where it stands for one.
    """
    m, n, single, checks = index.shape[1], len(ways), np.flatnonzero(ways == 1), []
    if m < n and np.sum(ways > 0) > 1:
        claim = "all indices are drawn equally often"
        counts, unequal = np.bincount(index.ravel(), minlength=n), (n - 1) / (n - m)
        checks.append(_frequencies("P1 frequencies", claim, counts, ways / n, unequal, level))
    if m > 1 and len(single) > 2:
        claim = "all differences of two indices of a block are drawn equally often"
        first, second = _one_of_each(index), _one_of_each(np.roll(index, 1, axis=1))
        clear = np.isin(first, single) & np.isin(second, single)
        counts = np.bincount((first - second)[clear] % n, minlength=n)
        possible = np.bincount(((single[:, None] - single) % n).ravel(), minlength=n)
        possible[0] = 0
        shares = possible / possible.sum()
        checks.append(_frequencies("P1 differences", claim, counts, shares, 1.0, level))
    return checks


def _frequencies(
    name: str, claim: str, counts: np.ndarray, chances: np.ndarray, factor: float, level: Level
) -> Check:
    """Pearson's χ² times a factor; what cannot happen is left to the exact checks."""
    possible, total = chances > 0, int(counts.sum())
    expected = total * chances[possible]
    df, rms, p, seen = len(expected) - 1, math.nan, 1.0, math.inf
    if expected.min() >= LEAST_EXPECTED:
        rms = math.sqrt(float(((counts[possible] - expected) ** 2 / expected).sum()) / total)
        p = float(stats.chi2.sf(factor * total * rms**2, df))
        seen = math.sqrt(_noncentrality(df, level.alpha) / factor / total)
    return outcome.judged(
        name,
        claim,
        rms,
        0.0,
        p=p,
        detectable=seen,
        level=replace(level, margin=FREQUENCY_MARGIN),
        size=total,
        unit=f"relative root mean square deviation of {df + 1} frequencies",
    )


@cache
def _noncentrality(df: int, alpha: float) -> float:
    """Noncentrality that a χ² test of level alpha rejects with `POWER`."""
    limit = float(stats.chi2.isf(alpha, df))
    # Cantelli's bound on the lower tail ends the search.
    end = 2 * limit + 100
    return float(optimize.brentq(lambda c: stats.ncx2.sf(limit, df, c) - POWER, 0, end))
