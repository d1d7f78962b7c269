"""Rows of the methods table as tests call them: small configurations, known spectra, degrees."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from specbp.methods import METHODS, Method
from tests.support import f64, geometric, spd

ROWS = list(METHODS.values())
PROBED = [row for row in ROWS if row.uses_probes]
LOGDETS = [row for row in ROWS if row.estimand == "logdet"]
MATRIX_FREE = [row for row in PROBED if row.on == "A"]
each_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
each_probed = pytest.mark.parametrize("row", PROBED, ids=lambda row: row.name)
each_logdet = pytest.mark.parametrize("row", LOGDETS, ids=lambda row: row.name)
ADDITIVE = [row for row in PROBED if not row.claims.joint]  # or but for a bound that they share
JOINT = [row for row in PROBED if row.claims.joint]
each_additive = pytest.mark.parametrize("row", ADDITIVE, ids=lambda row: row.name)
each_joint = pytest.mark.parametrize("row", JOINT, ids=lambda row: row.name)
SMALL = {
    "num_steps": 4,
    "degree": 9,
    "power_steps": 3,
    "block_steps": 1,
    "extra_steps": 2,
    "num_moments": 6,
    "mean_degree": 9,
}


def knowledge(row: Method, low: Any, high: Any) -> dict[str, Any]:
    """What the row needs to know of a spectrum in [low, high]."""
    values = {"interval": (low, high), "lower": low, "upper": high}
    return {name: values[name] for name in row.needs}


def operand(row: Method, A):
    """A itself, or a factor J with A = JᵀJ."""
    return torch.linalg.cholesky(A).mT if row.on == "J" else A


def run(row: Method, A, X, *, low=None, high=None, **config):
    """The row on A, with small defaults and an interval that holds the spectrum."""
    eigenvalues = torch.linalg.eigvalsh(A.double())
    low = 0.8 * eigenvalues[..., 0] if low is None else low
    high = 1.2 * eigenvalues[..., -1] if high is None else high
    chosen = {name: SMALL.get(name, value) for name, value in row.config.items()} | config
    return called(row, operand(row, A), X, {**chosen, **knowledge(row, low, high)})


def called(row: Method, operator, X, arguments: dict[str, Any]):
    """The row with its keyword arguments for these probes; degrees depend on the probes."""
    if not row.uses_probes:
        return row.estimate(operator, **arguments)
    arguments = row.keywords(*X.shape[-2:], arguments)
    if row.survival is not None:
        survival = row.survival(**arguments)
        batch = torch.broadcast_shapes(X.shape[:-2], survival.shape[:-1])
        u = uniform(X).expand(*batch, X.shape[-1]).contiguous()
        table = -survival[..., 1:].expand(*batch, -1).contiguous()
        arguments["degrees"] = torch.searchsorted(table, -u)
    return row.estimate(operator, X, **arguments)


def uniform(X):
    """A number in (0, 1) for each probe, the same for x and −x."""
    weights = torch.arange(2, X.shape[-2] + 2, dtype=f64, device=X.device).sqrt().unsqueeze(-1)
    return (X.double() * weights).sum(-2).square().mul(1e3).frac().clamp(1e-6, 1 - 1e-6)


def slack(row: Method) -> float:
    """How much more than sums of products a row rounds: a fitted density by its regularisation."""
    return 1e4 if row.claims.expectation == "model" else 1.0


def matrix(n=8, cond=10.0, seed=0):
    return spd(geometric(n, cond), seed)
