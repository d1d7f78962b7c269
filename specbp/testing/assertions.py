r"""One line in a test: is this estimator unbiased, and is its variance the one of its probes?

Each assertion takes the strongest route that is open, and says which: all outcomes of the probes
where they are few (code D2), a design with exact moments where the estimator is additive (D3, D4),
and replicates with a stated false-alarm rate and power elsewhere (S1, S2). Error bars, gradients
and reproducibility are in `assert_calibrated`, `assert_gradient` and `assert_reproducible`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from specbp.exact import moments
from specbp.testing import designs, evidence, judgements, outcome
from specbp.testing.assertions_calibrated import assert_calibrated
from specbp.testing.assertions_gradient import assert_gradient
from specbp.testing.assertions_reproducible import assert_reproducible
from specbp.testing.designs import Design
from specbp.testing.outcome import FAIL, INCONCLUSIVE, Check, Level
from specbp.testing.verdicts import causes_of_mean, causes_of_variance, settle

__all__ = [
    "assert_calibrated",
    "assert_gradient",
    "assert_reproducible",
    "assert_unbiased",
    "assert_variance",
]

REMEDIES = {
    "mean": "if the method promises tr p(A) of a truncated p, expect that, or pass a `tolerance`; "
    "else compare single values with xᵀf(A)x, specbp.exact.quadratic_forms",
    "variance": "check the law of the probes: specbp.testing.law_checks on captured_probes",
    "failure": "call it with the probes of the first failure; equal probes (m > 1) and singular "
    "small problems count: they have positive probability",
    "power": "raise `replicates`, or `margin` if so small an effect does not matter",
}


def assert_unbiased(
    estimator: Callable[..., Any],
    A: Any,
    expected: float,
    *,
    law: str | None = "rademacher",
    num_probes: int = 1,
    form: Any = None,
    alpha: float = 1e-3,
    margin: float = 0.2,
    tolerance: float | None = None,
    key: Sequence[object] = ("assert_unbiased",),
    replicates: int | None = None,
    allow_inconclusive: bool = False,
) -> Check:
    r"""Assert E[estimate] = expected, exactly where the law of the probes can be exhausted.

    .. math:: \mathbb{E}\, T(A, X) = \mu, \qquad X \in \mathbb{R}^{n \times m}

    Routes, the first that applies: all outcomes of the probes (Rademacher, n ≤ 12 and one probe, or
    a few probes of n ≤ 7); n blocks of orthogonal probes, if `form` says that T is the mean of
    xᵀBx; replicates elsewhere, by Student's t. A number of `replicates` forces the last route,
    with the exact moments of `form` in place of t if there is one.

    The hypothesis is that the bias is 0, or at most `tolerance`, to rounding: a bias below the
    margin can FAIL too. Without moments, fewer than 400 replicates cannot pass; nor can float32
    where its rounding, √(1000 n) ε times the size of the values, hides the margin.

    Args:
        estimator: `(A, probes) -> value`, probes (n, m) of A's dtype; for law None a black box that
            draws, `(A)` or `(A, generator)`. Values as in `specbp.testing.blackbox.call`.
        A: Tensor or operator (n, n).
        expected: μ.
        law: "rademacher", "gaussian", "sphere", "orthogonal", or None.
        num_probes: m. Take 2 or more to see a sum that is not divided by m.
        form: B (n, n), if T is the mean of xᵢᵀBxᵢ.
        alpha: False-alarm rate, of replicates only.
        margin: Bias beyond the tolerance that must be seen, in standard deviations of one estimate:
            by replicates with probability 0.95, and by exact routes in spite of rounding.
        tolerance: Bias that is allowed beside rounding, in the unit of the estimate; 0 if None.
        key: Key of the seeds: equal keys, equal verdict.
        replicates: R; by default as many as the margin needs, 614 for 0.2, and 400 at least.
        allow_inconclusive: Return a check without the power to see the margin instead of raising.

    Raises:
        AssertionError: The estimator is biased, fails, or the check has too little power.
        ValueError: The law is unknown, or replicates < 2.

    Source: Hutchinson (1990), doi:10.1080/03610919008812866; Student (1908),
    doi:10.1093/biomet/6.1.1; Cornish and Fisher (1938), doi:10.2307/1400905.

    Example:
        >>> import torch
        >>> from specbp import hutchinson_trace
        >>> A = torch.diag(torch.arange(1.0, 9.0)).double() + 0.1
        >>> check = assert_unbiased(hutchinson_trace, A, float(A.trace()))
        >>> check.verdict, check.name, check.size
        ('PASS', 'D2 mean', 128)
    """
    m, n, claim = num_probes, A.shape[-1], "the expectation of the estimate is the expected value"
    judgements.enough(replicates)
    code, design, level = "S1", None, Level(alpha, margin)
    if replicates is None:
        code, design = _design_of_mean(estimator, A, law, m, form, key)
    if design is None:
        R = replicates or judgements.replicates_for_mean(level)
        found = evidence.replicates(estimator, A, R, law, m, key)
    else:
        found = evidence.over(estimator, A, design.probes)
    if found.failures:
        check = judgements.failed(f"{code} mean", claim, found)
        return settle(check, remedy=REMEDIES["failure"])
    B = None if form is None else judgements.as_numpy(form)
    unit = evidence.unit(found.values, expected, () if B is None else B)
    values, expected, name = found.values / unit, expected / unit, f"{code} mean"
    B, known, allowed = None if B is None else B / unit, None, (tolerance or 0.0) / unit
    if B is not None and law in ("rademacher", "gaussian", "sphere"):
        known = moments(B, law).averaged(m)
    noise, rounding = evidence.noise(A, values, B), evidence.rounding(A, values, B)
    if design is None:
        check = judgements.mean(
            name,
            claim,
            values,
            expected,
            law=known,
            level=Level(alpha, margin, rounding),
            noise=noise,
            tolerance=allowed,
        )
        slack = 4 * float(values.std()) / math.sqrt(len(values))
    else:
        sd = math.sqrt(design.variance(values) if known is None else known.variance)
        check = judgements.equal(
            name,
            claim,
            design.mean(values),
            expected,
            limit=allowed + rounding,
            size=len(values),
            blind=rounding,
            effect=max(margin * sd, allowed) if sd > noise else math.inf,
        )
        slack = rounding
    check = judgements.in_units(check, unit)
    offsets = None if design is None or B is None else values - _forms(B, design)
    likely = causes_of_mean(check.statistic, expected, n=n, m=m, slack=slack, offsets=offsets)
    return _settled(check, likely, REMEDIES["mean"], allow_inconclusive)


def assert_variance(
    estimator: Callable[..., Any],
    A: Any,
    form: Any,
    *,
    law: str = "rademacher",
    num_probes: int = 1,
    draws: bool = False,
    alpha: float = 1e-3,
    margin: float = 0.25,
    key: Sequence[object] = ("assert_variance",),
    replicates: int | None = None,
    allow_inconclusive: bool = False,
) -> Check:
    r"""Assert that the variance is the closed form of the probe law.

    .. math:: \operatorname{Var} \tfrac1m \sum_i x_i^\top B x_i = V_1 / m, \qquad
              V_1 = 2 \|B - \operatorname{diag} B\|_F^2 \ \text{(Rademacher)}

    Too large a variance wastes probes; too small a one means that probes are antithetic or of
    another law. Exact by enumeration (n ≤ 12) or, for one probe and n ≤ 64, over a design with
    exact second moments; elsewhere the sample variance of replicates with Box's degrees of freedom.

    Args:
        estimator: `(A, probes) -> value`, or with `draws` a black box as in `assert_unbiased`.
        A: Tensor or operator (n, n).
        form: B (n, n).
        law: "rademacher", "gaussian" or "sphere".
        num_probes: m.
        draws: The estimator draws m probes of that law itself.
        alpha: False-alarm rate, of replicates only.
        margin: Excess of the ratio of variances that must be seen: by replicates with probability
            0.95, and by exact routes in spite of rounding.
        key: Key of the seeds.
        replicates: R; by default as many as the margin needs, 20 000 at most.
        allow_inconclusive: Return a check without the power to see the margin.

    Raises:
        AssertionError: The variance is another one, or the check has too little power.
        ValueError: The law has no closed form, or replicates < 2.

    Source: Avron and Toledo (2011), doi:10.1145/1944345.1944349; Box (1953), doi:10.2307/2333350.

    Example:
        >>> import torch
        >>> from specbp import hutchinson_trace
        >>> A = torch.diag(torch.arange(1.0, 9.0)).double() + 0.1
        >>> round(assert_variance(hutchinson_trace, A, A).statistic, 9)  # 2 · 56 · 0.1²
        1.12
    """
    m, claim = num_probes, f"the variance is the closed form of the {law} law"
    judgements.enough(replicates)
    B = judgements.as_numpy(form)
    unit = evidence.unit(B)
    B = B / unit
    known, level = moments(B, law).averaged(m), Level(alpha, margin)
    code, design = "S2", None
    if replicates is None and not draws:
        code, design = _design_of_variance(estimator, A, law, m)
    if design is None:
        R = replicates or judgements.replicates_for_variance(known, level)
        found = evidence.replicates(estimator, A, R, None if draws else law, m, key)
    else:
        found = evidence.over(estimator, A, design.probes)
    name = f"{code} variance"
    if found.failures:
        check = judgements.failed(name, claim, found)
        return settle(check, remedy=REMEDIES["failure"])
    if not B.any():
        unit = evidence.unit(found.values)
    with np.errstate(over="ignore"):
        values = found.values / unit
    u, sd = evidence.rounding(A, values, B), math.sqrt(known.variance)
    varies = sd > evidence.noise(A, values, B)
    if not np.isfinite(values).all() or np.abs(values).max() > evidence.LARGEST:
        reason = f"values up to {np.abs(found.values).max():.3g}, out of proportion to the form"
        check = outcome.broken(name, claim, reason)
    elif design is None and varies:
        check = judgements.variance(name, claim, values, known, Level(alpha, margin, u))
    else:
        measured = float(values.var()) if design is None else design.variance(values)
        if design is not None and law == "gaussian":
            measured = designs.gaussian_moments(design, values)[1]
        # A relative error u of the values moves their variance by 2 u |T| sd + u² T².
        limit = 2 * u * sd + u**2
        check = judgements.equal(
            name,
            claim,
            measured,
            known.variance,
            limit=limit,
            size=len(values),
            blind=limit,
            effect=margin * known.variance if varies else math.inf,
        )
    check = judgements.in_units(check, unit)
    ratio = check.statistic / check.reference if check.reference else math.inf
    likely = causes_of_variance(ratio, m)
    return _settled(check, likely, REMEDIES["variance"], allow_inconclusive)


def _design_of_mean(
    estimator: Callable[..., Any],
    A: Any,
    law: str | None,
    m: int,
    form: Any,
    key: Sequence[object],
) -> tuple[str, Design | None]:
    design = evidence.exact_law(estimator, A, law, m)
    if design is not None:
        return "D2", design
    if form is not None and law is not None:
        return "D3", evidence.basis(A.shape[-1], m, law, key)
    return "S1", None


def _design_of_variance(
    estimator: Callable[..., Any], A: Any, law: str, m: int
) -> tuple[str, Design | None]:
    n, design = A.shape[-1], evidence.exact_law(estimator, A, law, m)
    if design is not None:
        return "D2", design
    if m > 1 or n > evidence.MAX_ARRAY:
        return "S2", None
    if law == "rademacher":
        return "D4", designs.orthogonal_array(n)
    return "D4", designs.sphere_design(n)


def _forms(B: np.ndarray, design: Design) -> np.ndarray:
    """Mean of xᵢᵀBxᵢ of every block."""
    X = design.probes.numpy()
    return np.asarray(((B @ X) * X).sum(1).mean(-1))


def _settled(check: Check, likely: list[str], remedy: str, allow_inconclusive: bool) -> Check:
    failed = check.verdict == FAIL
    return settle(
        check,
        likely=likely if failed else (),
        remedy=REMEDIES["power"] if check.verdict == INCONCLUSIVE else remedy,
        allow_inconclusive=allow_inconclusive,
    )
