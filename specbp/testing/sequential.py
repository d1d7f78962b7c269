r"""Random checks that stop by themselves: three-way decisions on a mean, and escalation by looks.

A check of fixed size either cannot see a small fault or wastes time on a large one. `three_way`
looks after every value and states both its error rates; `escalate` doubles down on what looks
suspicious, within one level for all looks. Both are built on `specbp.testing.evalues`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import numpy.typing as npt
from scipy import stats

from specbp.testing.evalues import (
    LogMgf,
    MixtureProcess,
    NormalMixture,
    ShiryaevRoberts,
    VarianceProcess,
    cumulant_log_mgf,
    normal_log_mgf,
    optimal_ratio,
    standardised,
)
from specbp.testing.outcome import FAIL, INCONCLUSIVE, PASS, POWER, Check, Level, broken

__all__ = [
    "LogMgf",
    "MixtureProcess",
    "NormalMixture",
    "ShiryaevRoberts",
    "VarianceProcess",
    "cumulant_log_mgf",
    "escalate",
    "normal_log_mgf",
    "standardised",
    "three_way",
]

Array = npt.NDArray[np.float64]
CAP = 60.0  # values at most, in units of 1/margin²
HEAVY_LOOK = 30  # no FAIL before this many values of a law with unknown tails
BLOCK = 32
SUSPICIOUS = 1e-2
CLAIM = "the expectation of the estimate is that of its contract"


def three_way(
    values: Iterable[float],
    expected: float,
    sd: float,
    margin: float,
    alpha_fail: float = 1e-3,
    alpha_pass: float = 1e-2,
    *,
    log_mgf: LogMgf | None = None,
    heavy: bool = True,
    name: str = "mean",
) -> Check:
    r"""FAIL if the mean is off, PASS if it is off by less than the margin, else INCONCLUSIVE.

    With x = (T − μ)/σ, ε the margin, and E a mixture over tilts .3ε … 3ε (`MixtureProcess`):

    .. math:: \text{FAIL: } E(x) \ge \frac1{\alpha_F}, \qquad
              \text{PASS: } E^-(x - \varepsilon) \ge \frac1{\alpha_P} \text{ and }
              E^+(x + \varepsilon) \ge \frac1{\alpha_P}, \qquad t \le 60/\varepsilon^2

    A right mean fails with probability at most α_F, and one that is off by ε or more passes with
    probability at most α_P, where the values are independent and ψ bounds their log-mgf. Without
    `log_mgf` that of the normal law is used; as early looks at heavy-tailed values would err many
    times as often, none of the first 30 fails, which leaves up to about twice α_F.

    Args:
        values: Independent values, an array or a stream; taken in blocks of 32 until decided.
        expected: μ, the expectation that is claimed.
        sd: σ, the standard deviation of one value, known.
        margin: ε, the smallest shift that matters, in standard deviations of one value.
        alpha_fail: α_F.
        alpha_pass: α_P.
        log_mgf: ψ of a standardised value.
        heavy: False where the values are known to be near normal (means of many probes).
        name: First word of the check's name.

    Returns:
        A check with `e`, the size that was used, and no p-value. `detectable` is ε of a PASS, else
        the shift that this many values reject with probability 0.95.

    Raises:
        ValueError: If sd or margin is not positive, or a level not in (0, 1).

    Example:
        >>> values = [1.0, -1.0] * 2000
        >>> check = three_way(values, expected=0.0, sd=1.0, margin=0.2)
        >>> check.verdict, check.size
        ('PASS', 290)
        >>> three_way(values, expected=0.5, sd=1.0, margin=0.2).verdict
        'FAIL'

    Source: after Wald, Ann. Math. Statist. 16 (1945) 117–186, with mixtures for point hypotheses.
    """
    decision = _Decision.of(margin, alpha_fail, alpha_pass, log_mgf, heavy)
    if not sd > 0:
        raise ValueError(f"sd is positive, got {sd}: compare constant values exactly instead.")
    limit = math.ceil(CAP / margin**2)
    total, taken = 0.0, 0
    for block in _blocks(values, limit):
        x = (block - expected) / sd
        if not np.isfinite(x).all():
            bad = int(np.flatnonzero(~np.isfinite(x))[0])
            return broken(name, CLAIM, f"value {taken + bad} is {block[bad]}")
        verdict, used, e = decision.extend(x)
        total, taken = total + float(x[:used].sum()), taken + used
        if verdict:
            break
    else:
        verdict, e = INCONCLUSIVE, decision.fails.log_e
    if not taken:
        return replace(broken(name, CLAIM, "no values"), verdict=INCONCLUSIVE)
    return decision.check(name, verdict, total / taken, taken, e)


@dataclass
class _Decision:
    """The three e-processes of `three_way`, and its rules."""

    margin: float
    alpha_fail: float
    alpha_pass: float
    first_fail: int
    fails: MixtureProcess
    passes: tuple[tuple[float, MixtureProcess], ...]

    @classmethod
    def of(
        cls, margin: float, fail: float, pass_: float, log_mgf: LogMgf | None, heavy: bool
    ) -> _Decision:
        if not margin > 0 or not (0 < fail < 1 and 0 < pass_ < 1):
            raise ValueError(
                f"margin > 0 and levels in (0, 1) are required, got {margin}, {fail} and {pass_}."
            )

        def process(*signs: int) -> MixtureProcess:
            psi = log_mgf or normal_log_mgf
            return MixtureProcess(psi, smallest=0.3 * margin, largest=3 * margin, signs=signs)

        first = HEAVY_LOOK if heavy and log_mgf is None else 1
        passes = ((-margin, process(-1)), (margin, process(1)))
        return cls(margin, fail, pass_, first, process(1, -1), passes)

    def extend(self, x: Array) -> tuple[str, int, float]:
        """Verdict ("" while undecided), values used, and log E at that point."""
        t = self.fails.count + np.arange(1, len(x) + 1)
        path = self.fails.extend(x)
        off = (path >= -math.log(self.alpha_fail)) & (t >= self.first_fail)
        near = np.ones(len(x), dtype=bool)
        for shift, process in self.passes:
            near &= self._crossed(process, x + shift)
        decided = np.flatnonzero(off | near)
        if not len(decided):
            return "", len(x), float(path[-1])
        at = int(decided[0])
        return (FAIL if off[at] else PASS), at + 1, float(path[at])

    def _crossed(self, process: MixtureProcess, x: Array) -> npt.NDArray[np.bool_]:
        """Whether the process has ever reached 1/α_P, up to each value."""
        bound = -math.log(self.alpha_pass)
        before = process.peak >= bound
        return np.logical_or.accumulate((process.extend(x) >= bound) | before)

    def check(self, name: str, verdict: str, mean: float, size: int, log_e: float) -> Check:
        e = math.exp(min(log_e, 700.0))
        detectable = self.margin if verdict == PASS else self._detectable(size)
        half = self._intervals(self.alpha_pass).radius(size)
        message = (
            f"mean {mean:+.3g} ± {half:.2g} sd from the contract (all times, level "
            f"{self.alpha_pass:g}), E = {e:.3g}, fails at {1 / self.alpha_fail:.3g}, {size} values;"
            f" a shift of {self.margin:g} sd passes with probability at most {self.alpha_pass:g}"
        )
        return Check(
            name,
            CLAIM,
            verdict,
            mean,
            0.0,
            message,
            e=e,
            alpha=self.alpha_fail,
            detectable=detectable,
            margin=self.margin,
            size=size,
        )

    def _intervals(self, alpha: float) -> NormalMixture:
        return NormalMixture(alpha, optimal_ratio(alpha) / self.margin**2)

    def _detectable(self, size: int) -> float:
        noise = float(stats.norm.isf(1 - POWER)) / math.sqrt(size)
        return float(self._intervals(self.alpha_fail).radius(size)) + noise


def _blocks(values: Iterable[float], limit: int) -> Iterator[Array]:
    stream = islice(iter(values), limit)
    while block := list(islice(stream, BLOCK)):
        yield np.array(block, dtype=np.float64)


def escalate(
    sample: Callable[[int], Array],
    test: Callable[[Array, Level], Check],
    level: Level,
    sizes: Sequence[int] = (64, 256, 1024),
    shares: Sequence[float] = (1, 1, 2),
) -> Check:
    r"""A check of fixed size that takes more values while it is suspicious or blind.

    .. math:: \text{FAIL at look } j \text{ if } p_j \le \alpha s_j / \textstyle\sum_i s_i

    PASS at the first look with p ≥ 0.01 and the power to see the margin; all other outcomes are
    those of the last look. A look with too few values for a p-value, such as one of Student's t
    below its least size, is INCONCLUSIVE and not the last. Whatever the rule by which looks are
    taken, the false alarms are at most α, by the union bound.

    Args:
        sample: k -> k further independent values, shape (k, ...).
        test: (values, level) -> Check, such as `sampling.mean` with its law bound.
        level: α of all looks together, and the margin.
        sizes: Values at each look, increasing.
        shares: How α is split among the looks.

    Returns:
        The check of the last look taken, with the p-value of all: the least p_j Σs / s_j,
        None where no look had one.

    Raises:
        ValueError: If sizes do not increase or have other shares than themselves.

    Example:
        >>> from specbp.exact import Moments
        >>> from specbp.testing import sampling
        >>> normal = Moments(mean=0.0, variance=1.0, third=0.0, fourth=3.0)
        >>> def test(values, level):
        ...     return sampling.mean(values, 0.0, normal, level)
        >>> check = escalate(np.zeros, test, Level(alpha=1e-3, margin=0.5))
        >>> check.verdict, check.size
        ('PASS', 256)

    Source: Bonferroni over looks; for sharper boundaries see Jennison and Turnbull, Group
    Sequential Methods (2000).
    """
    _require_looks(sizes, shares)
    values, p = sample(sizes[0]), math.inf
    for look, (size, share) in enumerate(zip(sizes, shares, strict=True)):
        if look:
            values = np.concatenate([values, sample(size - len(values))])
        part = share / sum(shares)
        check = test(values, replace(level, alpha=level.alpha * part))
        if check.p is None:
            if check.verdict != INCONCLUSIVE:
                return check  # nothing random: more values say nothing more
            continue  # too few values for a p-value
        p = min(p, check.p / part)
        done = check.verdict == PASS and check.p >= SUSPICIOUS
        if done or check.verdict == FAIL:
            break
    message = f"{check.message}; look {look + 1} of {len(sizes)}, all looks at {level.alpha:.2g}"
    found = p if p < math.inf else None
    return replace(check, p=found, alpha=level.alpha, message=message)


def _require_looks(sizes: Sequence[int], shares: Sequence[float]) -> None:
    increasing = all(a < b for a, b in zip((0, *sizes), sizes, strict=False))
    if not sizes or not increasing or len(sizes) != len(shares) or not min(shares) > 0:
        raise ValueError(
            "Looks need increasing sizes and one positive share each, "
            f"got {tuple(sizes)} and {tuple(shares)}."
        )
