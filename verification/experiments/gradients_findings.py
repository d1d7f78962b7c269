"""What the study of gradients found, in words, every number from its records."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

from verification.experiments.gradients_derived import (
    Shape,
    budgets,
    chosen,
    names,
    of_cost,
    shape_of,
    shapes,
)
from verification.experiments.gradients_estimators import (
    BLOCK,
    FRECHET,
    ORTHOGONAL,
    PAPER,
    PAPERS,
)
from verification.experiments.gradients_goals import OURS, compared, lowest, only, paper_with
from verification.experiments.outputs import table
from verification.store import Record


def findings(records: list[Record]) -> str:
    """All of them."""
    parts = (_noise, _bias, _zero, _reduced, _vectors, _exact)
    bullets = [f"- {text}" for part in parts for text in part(records)]
    return "\n".join(bullets) + "\n\n" + reached(records) + "\n"


def _middle(records: list[Record]) -> int:
    return budgets(records)[-2:][0]


def _span(values: list[float]) -> str:
    return f"{min(values):.2g} … {max(values):.2g}"


def _single(records: list[Record], case: str, name: str) -> Record:
    """One probe of an estimator, with the most steps up to the paper's."""
    own = chosen(records, "noise", label=case, estimator=name)
    return max((r for r in own if r["steps"] <= PAPERS), key=lambda r: r["steps"])


def _noise(records: list[Record]) -> Iterator[str]:
    single = [_single(records, case, FRECHET) for case in names(records, "noise")]
    relative = [r["std"] / math.sqrt(r["n"]) for r in single]
    yield (
        "**The limit is the noise of the probes.** m independent probes leave a relative std of "
        "std₁/√m. On a flat spectrum std₁ is of the order of √n; measured, with up to "
        f"{PAPERS} steps of {FRECHET}, it is {_span(relative)} times √n, and "
        f"{_span([r['std'] for r in single])} itself. No number of steps lowers it."
    )


def _bias(records: list[Record]) -> Iterator[str]:
    budget = _middle(records)
    pairs = []
    for case in names(records, "noise"):
        found = shapes(records, case, budget)
        long, short = paper_with(PAPERS)(found), lowest(only(PAPER))(found)
        if long and short:
            pairs.append((long, short))
    fewer = [(long, short) for long, short in pairs if short.steps < long.steps]
    if fewer:
        yield (
            f"**Few steps are quiet because they are biased.** At {budget} products the paper's "
            f"least RMSE is with fewer steps than {PAPERS} in {len(fewer)} of {len(pairs)} cases: "
            f"there its std falls from {_span([a.std for a, _ in fewer])} to "
            f"{_span([b.std for _, b in fewer])}, and its bias becomes "
            f"{_span([b.bias for _, b in fewer])} of the exact gradient, from "
            f"{_span([a.bias for a, _ in fewer])}."
        )


def _zero(records: list[Record]) -> Iterator[str]:
    cases = names(records, "noise")
    for budget in budgets(records):
        known = [shapes(records, case, budget) for case in cases]
        fixed = [s for s in (paper_with(PAPERS)(found) for found in known) if s]
        paper = [s for s in (lowest(only(PAPER))(found) for found in known) if s]
        ours = [s for s in (lowest(lambda s: s.estimator != PAPER)(found) for found in known) if s]
        counts = [
            f"{sum(s.rmse < 1 for s in some)} of {len(some)}" for some in (fixed, paper, ours)
        ]
        first = (
            f"the paper's with {PAPERS} steps in {counts[0]} cases, " if fixed else "the paper's "
        )
        yield (
            f"**Better than no gradient** (RMSE < 1) at {budget} products: "
            f"{first}in its best shape in {counts[1]}; ours, the best shape of all estimators, in "
            f"{counts[2]}."
        )


def _with_steps(name: str, shape: Shape) -> bool:
    return shape.estimator == name and shape.steps == PAPERS


def _reduced(records: list[Record]) -> Iterator[str]:
    budget, same = _middle(records), paper_with(PAPERS)
    for name in (BLOCK, ORTHOGONAL):
        ours = lowest(partial(_with_steps, name))
        found = compared(records, budget, "std", ours, same)
        parts = []
        for dear, text in ((True, "more"), (False, "no more")):
            some = [c.ratio for c in found if c.dear is dear]
            if some:
                parts.append(f"{_span(some)} where the exact gradient costs {text} than that")
        if parts:
            yield (
                f"**{name}** has, with {PAPERS} steps for each probe and {budget} products, a std "
                f"of {', '.join(parts)}, relative to the paper's in the same shape. It removes "
                "what lies in the space that the products span, of at most so many dimensions."
            )


def _vectors(records: list[Record]) -> Iterator[str]:
    steps = sorted({r["steps"] for r in chosen(records, "memory") if r["steps"]})
    few, many = steps[0], steps[-1]
    rows = [
        [of_cost(records, "memory", c, e, k) for k in (few, many)]
        for c in names(records, "memory")
        for e in OURS
    ]
    saved = [b["bytes"] / a["bytes"] for a, b in rows]
    both = [(b["bytes"] + b["held"]) / (a["bytes"] + a["held"]) for a, b in rows]
    yield (
        f"**Memory** of ours from {few} to {many} steps grows by a factor of {_span(saved)} in "
        f"saved tensors, of {_span(both)} with the vectors held until backward: activations do not "
        "grow with the steps, Krylov bases do."
    )


def _exact(records: list[Record]) -> Iterator[str]:
    rows = chosen(records, "reach", estimator=FRECHET)
    cheaper = [r for r in rows if r["exact"] <= r["seconds"]]
    fewer = [r for r in rows if r["n"] / 2 <= r["products"]]
    yield (
        f"**The exact gradient** takes n/2 products at most. Probes of {FRECHET} enough for a "
        f"relative std of 1, as large as the gradient itself, take at least as many "
        f"products in {len(fewer)} of {len(rows)} networks, and at least as much time in "
        f"{len(cheaper)}:"
    )


def reached(records: list[Record]) -> str:
    """Products and seconds at which the noise is as large as the exact gradient."""
    head = ["Network", "n", "Estimator", "std₁", "Bias", "Probes std₁²", "Products"]
    head += ["Exact: products", "ms", "Exact: ms", "exact : estimator"]
    rows = [
        [
            r["case"],
            str(r["n"]),
            r["estimator"],
            f"{r['std']:.2f}",
            f"{shape_of(_single(records, r['case'], r['estimator']), 1).bias:.2f}",
            str(r["probes"]),
            str(r["products"]),
            f"{r['n'] / 2:g}",
            f"{1e3 * r['seconds']:.1f}",
            f"{1e3 * r['exact']:.1f}",
            f"{r['exact'] / r['seconds']:.2f}",
        ]
        for r in chosen(records, "reach")
    ]
    return table(head, rows)


def left_out(records: list[Record]) -> str:
    """Measurements that were not finite."""
    failed = [
        r for r in chosen(records, "noise") if r["std"] is None or not math.isfinite(r["std"])
    ]
    if not failed:
        return ""
    rows = sorted({f"{r['estimator']} on {r['label']}, {r['steps']} steps" for r in failed})
    return "Not finite, and left out: " + "; ".join(rows) + ".\n"
