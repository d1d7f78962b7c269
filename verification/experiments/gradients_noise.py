r"""Noise and bias of gradient estimators against the exact gradient, truncation and sampling apart.

.. math:: g_k(x) - g = \underbrace{g_k(x) - g_\infty(x)}_{\text{truncation}}
          + \underbrace{g_\infty(x) - g}_{\text{sampling}}, \qquad
          \mathbb{E}\, g_\infty(x) = g

With g∞ the limit of many steps: xᵀ L_log(A, dA) x by Fréchet derivative of log, xᵀ A⁻¹ dA x of
solves. An estimator without a limit of its own is measured against the first for its bias alone.

Every norm is one over all variables, relative to |g|; see `Case` for how few directions suffice.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from specbp import generator_for, rademacher
from specbp.solvers import block_cg, cg
from verification.experiments.gradients_cases import (
    Case,
    Linearised,
    Tree,
    dense_gradient,
    dot,
    exact_gradient,
    gradient_of,
    jacobian,
)
from verification.experiments.gradients_estimators import (
    Estimator,
    Function,
    Limit,
    backprop,
    equal_degree,
    golub_kahan,
)
from verification.store import Record

BYTES = 2**26  # of the matrices n x n of the replicates that are pulled back at once
FEW = 8  # replicates of the checks
DENSE = 64  # largest n at which the exact gradient is checked by automatic differentiation


def measure(case: Case, estimator: Estimator, m: int, steps: int, replicates: int) -> Record:
    """Noise and bias of one estimator with m probes of so many steps."""
    # All estimators see the same probes, so that their ratios are known better than they are.
    draws = generator_for("gradients", case.name, case.variables, m)
    probes = estimator.law(len(case.R), m, generator=draws, batch_shape=(replicates,))
    found = gradients(case, estimator, probes, steps, draws)
    own = estimator.limit is not None
    truncation = found - untruncated(case, probes, estimator.limit or "log")
    sampling = found - truncation
    # The mean error, by whichever is less noisy: against the same probes, or against the truth.
    error = min(truncation, found - case.exact, key=lambda values: _std(values, case))
    return {
        "kind": "noise",
        "case": case.name,
        "variables": case.variables,
        "label": case.label,
        "n": len(case.R),
        "condition": float(case.eigenvalues[-1] / case.eigenvalues[0]),
        "norm": case.norm,
        "estimator": estimator.name,
        "independent": estimator.independent,
        "rtol": estimator.rtol,
        "probes": m,
        "steps": steps,
        "products": m * (_mean_steps(case, estimator, probes, steps) + estimator.final),
        "replicates": replicates,
        "std": _std(found, case),
        "sampling_std": _std(sampling, case) if own else None,
        "truncation_std": _std(truncation, case) if own else None,
        "bias": _mean(error, case),
        "bias_error": _std(error, case) / math.sqrt(replicates),
    }


def gradients(
    case: Case, estimator: Estimator, probes: Tensor, steps: int, draws: torch.Generator
) -> Tensor:
    """Gradients along all directions, (b, d), for probes (b, n, m)."""
    function, found = estimator.twin or estimator.estimate, []
    for some in probes.split(max(1, BYTES // (8 * case.R.numel()))):
        J = Linearised(case.R, case.slopes, len(some))
        estimate = function(J, some, steps, case.interval, draws)
        found.append(torch.autograd.grad(estimate.value.sum(), J.alpha)[0])
    return torch.cat(found)


def untruncated(case: Case, probes: Tensor, limit: Limit = "log") -> Tensor:
    """The gradient that probes (b, n, m) have without truncation along all directions, (b, d)."""
    x, forms = case.vectors.mT @ probes, case.forms(limit).flatten(1).mT
    found = []
    for some in x.split(max(1, BYTES // (8 * case.R.numel()))):
        outer = some @ some.mT / probes.shape[-1]
        found.append(outer.flatten(1) @ forms)
    return torch.cat(found)


def _mean_steps(case: Case, estimator: Estimator, probes: Tensor, steps: int) -> float:
    if estimator.rtol is None:
        return steps
    rows = probes[:FEW].mT.flatten(0, 1)
    return float(cg(case.R.mT @ case.R, rows, rtol=estimator.rtol).num_steps.double().mean())


def solves(case: Case, m: int, rtol: float) -> Record:
    """Products with JᵀJ that m right sides take, each in its own Krylov space or in one of all."""
    draws = generator_for("gradients", case.name, "solves", m)
    rows = rademacher(len(case.R), m, generator=draws).mT
    A = case.R.mT @ case.R
    record: Record = {"kind": "solve", "case": case.name, "n": len(A), "probes": m, "rtol": rtol}
    for name, solver in (("cg", cg), ("block_cg", block_cg)):
        found = solver(A, rows, rtol=rtol)
        steps = found.num_steps.double()
        record[name] = float(steps.sum() if name == "cg" else steps.max() * min(m, len(A)))
        record[f"{name}_converged"] = bool(found.converged.all())
    return record


def check(case: Case) -> Record:
    """Relative gaps between what must agree; one of the two sides is the network itself."""
    draws = generator_for("gradients", case.name, "check")
    probes = rademacher(len(case.R), 2, generator=draws, batch_shape=(FEW,))
    steps = min(6, len(case.R))
    J = Linearised(case.R, case.slopes, FEW)
    value = golub_kahan(J, probes, steps, case.interval, draws).value.sum()
    (along,) = torch.autograd.grad(value, J.alpha)
    trees = [_on_network(case, golub_kahan, x, steps) for x in probes.split(1)]
    own = torch.stack([torch.stack([dot(g, d) for d in case.directions]) for g in trees])
    paper, adjoint = (_on_network(case, f, probes[:1], steps) for f in (backprop, equal_degree))
    small = len(case.R) <= DENSE
    exact = exact_gradient(case.f, case.z)
    return {
        "kind": "check",
        "case": case.name,
        "directions": len(case.directions),
        "linearised": float((along - own).abs().max() / own.abs().max()),
        "adjoint": _gap(paper, adjoint),
        "dense": _gap(exact, dense_gradient(case.f, case.z)) if small else None,
        "std_by_directions": _std(own, case),
        "std_of_all": _std_of_all(trees) / case.norm,
    }


def _on_network(case: Case, function: Function, probes: Tensor, steps: int) -> Tree:
    draws = generator_for("none")
    found = function(jacobian(case.f, case.z), probes, steps, case.interval, draws)
    return gradient_of(found.value.sum(), case.f, case.z)


def _gap(a: Tree, b: Tree) -> float:
    difference = {name: a[name] - b[name] for name in a}
    return float((dot(difference, difference) / dot(a, a)).sqrt())


def _std_of_all(trees: list[Tree]) -> float:
    variances = [torch.stack([t[name] for t in trees]).var(0).sum() for name in trees[0]]
    return float(torch.stack(variances).sum().sqrt())


def _std(values: Tensor, case: Case) -> float:
    """√(Σ Var) over all variables, estimated from the directions, relative to |g|."""
    return float(values.var(0).mean().sqrt()) / case.norm


def _mean(values: Tensor, case: Case) -> float:
    return float(values.mean(0).square().mean().sqrt()) / case.norm
