"""Equal probes where there should be fresh ones (P2), and reproducibility (P3): no level needed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from specbp.probes import generator_for
from specbp.testing import outcome, tails
from specbp.testing.blackbox import global_state
from specbp.testing.outcome import Check

DENSE = 0.5  # vectors in two parts, over their possible values, beyond which Poisson's law fails


def duplicate_checks(
    blocks: Tensor, axes: Sequence[str] = ("calls",), *, alpha: float = 1e-3
) -> list[Check]:
    """No two probes are equal up to sign: within a block, and across each axis in front of it.

    Equal probes mean that one draw was counted twice: shared between items of a batch, frozen
    between calls, antithetic, or drawn from seeds that repeat. A pair is charged to the first axis
    in which its members differ. Vectors are compared bit by bit, which needs no level; only where
    short sign vectors coincide by chance (n ≤ 30 or so) is the number of pairs held against its
    law at `alpha` (Poisson's, and a three-moment fit where vectors outnumber their possible
    values), and REPORTED if it is compatible.

    Args:
        blocks: Captured blocks (*axes, n, m).
        axes: Names of the leading dimensions, outermost first, such as ("seeds", "calls", "items").
        alpha: Level for chance coincidences.

    Raises:
        ValueError: The number of names is not that of the leading dimensions.

    Source: the birthday problem; Poisson limit of Arratia, Goldstein and Gordon (1989),
    doi:10.1214/aop/1176991491.

    Example:
        >>> import torch
        >>> same = torch.randn(5, 2, generator=torch.Generator().manual_seed(0)).expand(3, 5, 2)
        >>> [check.verdict for check in duplicate_checks(same)]
        ['FAIL', 'PASS']
    """
    if blocks.ndim != len(axes) + 2:
        raise ValueError(
            f"Blocks of axes {tuple(axes)} have shape (*axes, n, m), got {tuple(blocks.shape)}."
        )
    shape, n = (*blocks.shape[:-2], blocks.shape[-1]), blocks.shape[-2]
    # Widening is one to one, and numpy has no bfloat16.
    rows = blocks.detach().cpu().double().mT.reshape(-1, n)
    found = _coincident_pairs(rows, shape)
    checks = []
    for axis, scope in enumerate([*(f"across {name}" for name in axes), "within one block"]):
        if shape[axis] > 1:
            checks.append(_duplicates(scope, found[axis], shape, axis, rows, alpha))
    return checks


def _coincident_pairs(rows: Tensor, shape: tuple[int, ...]) -> Counter[int]:
    """Pairs of rows equal up to sign, counted by the first index in which they differ."""
    first = rows.gather(1, (rows != 0).int().argmax(1, keepdim=True))
    # Adding zero turns -0.0 into 0.0, which has other bits.
    keys = (torch.where(first < 0, -rows, rows) + 0.0).contiguous().numpy()
    _, label = np.unique(keys.view(np.uint8).reshape(len(keys), -1), axis=0, return_inverse=True)
    counts: Counter[int] = Counter()
    indices = np.stack(np.unravel_index(np.arange(len(keys)), shape), 1)
    label = label.ravel()
    for axis in range(len(shape)):
        # Pairs that agree in all axes before this one, minus those that agree in it as well.
        counts[axis] = _agreeing(label, indices[:, :axis]) - _agreeing(
            label, indices[:, : axis + 1]
        )
    return counts


def _agreeing(label: np.ndarray, indices: np.ndarray) -> int:
    """Pairs with equal label and equal indices."""
    together = np.column_stack([label, indices])
    sizes = np.unique(together, axis=0, return_counts=True)[1]
    return int(np.sum(sizes * (sizes - 1) // 2))


def _pairs(shape: tuple[int, ...], axis: int) -> int:
    """Pairs of rows whose first unequal index is that of this axis."""
    inner = math.prod(shape[axis + 1 :])
    return math.prod(shape[:axis]) * math.comb(shape[axis], 2) * inner**2


def _chance_p(found: int, shape: tuple[int, ...], axis: int, q: float) -> float:
    """P(at least as many pairs coincide) of fresh vectors, each pair equal with probability q.

    Indicators of pairs are uncorrelated, even those that share a vector; three that form a triangle
    are not independent: third moment by the number of triangles, tail by Pearson's type III, which
    for all pairs of many vectors is the χ² test of equal frequencies. Never below Poisson's tail.
    """
    parts, inner, pairs = shape[axis], math.prod(shape[axis + 1 :]), _pairs(shape, axis)
    triangles = math.prod(shape[:axis]) * math.comb(parts, 3) * inner**3
    sd = math.sqrt(pairs * q * (1 - q))
    third = pairs * q * (1 - q) * (1 - 2 * q) + 6 * triangles * q**2 * (1 - q)
    z = (found - pairs * q) / sd if sd > 0 else 0.0
    ps = [
        float(stats.poisson.sf(found - 1, pairs * q)),
        tails.pearson(z, third / sd**3) if sd else 1.0,
    ]
    if parts == 2 and inner > 1 and 2 * inner * q > DENSE and z > 0:
        ps.append(1 / (1 + z**2))  # a product of two sums has a long tail: Cantelli's bound
    return max(ps)


def _duplicates(
    scope: str, found: int, shape: tuple[int, ...], axis: int, rows: Tensor, alpha: float
) -> Check:
    claim = f"no two probes {scope} are equal up to sign"
    name, n = f"P2 duplicates {scope}", rows.shape[1]
    pairs, modulus = _pairs(shape, axis), rows.abs()
    signs = bool((modulus == modulus.flatten()[0]).all())
    chance = pairs * 2.0 ** (1 - n) if signs else 0.0
    message = f"{found} of {pairs} pairs coincide, {chance:.2g} expected by chance"
    if chance <= alpha:
        return outcome.exactly(name, claim, found == 0, message)
    p = _chance_p(found, shape, axis, 2.0 ** (1 - n))
    if p <= alpha:
        return replace(outcome.exactly(name, claim, False, message), p=p, alpha=alpha)
    reason = f"{message}: sign vectors of length {n} are too few, take a larger n"
    return replace(outcome.reported(name, claim, found, chance, reason), p=p, alpha=alpha)


def reproducibility_checks(
    draw: Callable[[torch.Generator], Any], key: Sequence[object]
) -> list[Check]:
    """Same seed, same bits; another seed, other bits; the global generators are left alone.

    Args:
        draw: `generator -> tensor, number or Estimate` whose randomness is that of the generator.
        key: Key of the seeds.

    Source: statement of the random-number contract in `specbp.probes`.

    Example:
        >>> from specbp import rademacher
        >>> draw = lambda generator: rademacher(64, 2, generator=generator)
        >>> [check.verdict for check in reproducibility_checks(draw, ("doc",))]
        ['PASS', 'PASS', 'PASS']
    """
    before = global_state()
    first, again = (bits_of(draw(generator_for(*key, 0))) for _ in range(2))
    other = bits_of(draw(generator_for(*key, 1)))
    undisturbed = before == global_state()
    return [
        outcome.exactly(
            "P3 same seed",
            "equal seeds give equal bits",
            first == again,
            "equal" if first == again else "two calls with the same seed differ",
        ),
        outcome.exactly(
            "P3 new seed",
            "another seed gives other numbers",
            first != other,
            "different" if first != other else "two seeds give the same bits: frozen randomness",
        ),
        outcome.exactly(
            "P3 global state",
            "a call with a generator leaves the global generators alone",
            undisturbed,
            "untouched" if undisturbed else "the state of a global generator has changed",
        ),
    ]


def bits_of(result: Any) -> bytes:
    """The bits of a tensor, a number, the first of a pair, or the `value` of an object."""
    value = getattr(result, "value", result)
    value = value[0] if isinstance(value, tuple) else value
    return torch.as_tensor(value).detach().cpu().contiguous().numpy().tobytes()
