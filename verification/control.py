"""The A/A record: an estimator that is right by construction, put through the gate's own tier S.

Whatever the gate finds wrong with it is a false alarm. It shares nothing with what the gate judges:
signs from numpy, and xᵀ log(A) x from the dense matrix. Over many epochs, each with fresh seeds,
the false alarms must come as rarely as the level says. They are too few to show more than a gross
fault of the gate, so the scores behind them are tested as well: standard normal, over all epochs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from specbp import Estimate
from specbp.methods import Claims
from specbp.testing import multiplicity
from specbp.testing.outcome import FAIL, Check
from verification.checks import sampling
from verification.checks.settings import Settings
from verification.runner import SUITE_ALPHA
from verification.store import Record
from verification.subjects import Subject

EPOCHS = 200
# The gate's own, and one that is high enough for a few hundred epochs to tell a doubled rate.
LEVELS = (SUITE_ALPHA, 0.05)
SCORES_LEVEL = 1e-3  # of the test that the scores of all runs are standard normal
LEAST = 20  # epochs below which a record cannot be called consistent


def control_subject() -> Subject:
    """The trusted estimator of log det A, and its sampler of signs."""
    return Subject(
        name="control",
        estimate=dense_estimate,
        on="A",
        estimand="logdet",
        claims=Claims("tr p(A)", matvecs=_no_products),
        sampler=signs,
    )


def _no_products(_n: int, _m: int, _config: dict[str, Any]) -> float:
    return 0


def dense_estimate(operator: Tensor, probes: Tensor) -> Estimate:
    """Mean of xᵀ log(A) x over the probes (..., n, m), and its standard error; numpy only."""
    A = operator.double().numpy()
    B, X = _log(A.tobytes(), len(A)), probes.double().numpy()
    samples = np.einsum("...im,ij,...jm->...m", X, B, X, optimize=True)
    value, m = samples.mean(-1), samples.shape[-1]
    error = samples.std(-1, ddof=1) / np.sqrt(m) if m > 1 else np.full_like(value, np.nan)
    unknown = torch.full(value.shape, torch.inf, dtype=torch.float64)
    return Estimate(
        value=torch.as_tensor(value),
        standard_error=torch.as_tensor(error),
        num_matvecs=0,
        lower=-unknown,
        upper=unknown,
        status=torch.zeros(value.shape, dtype=torch.int64),
        samples=torch.as_tensor(samples),
    )


@lru_cache(maxsize=64)
def _log(content: bytes, n: int) -> np.ndarray:
    """log A of a symmetric positive definite matrix, from its bytes."""
    A = np.frombuffer(content).reshape(n, n)
    values, vectors = np.linalg.eigh((A + A.T) / 2)
    return (vectors * np.log(values)) @ vectors.T


def signs(
    n: int,
    m: int,
    *,
    generator: torch.Generator,
    batch_shape: Sequence[int] = (),
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Independent signs, (*batch_shape, n, m), by numpy; the generator only gives the seed."""
    words = torch.randint(0, 2**62, (4,), generator=generator)
    rng = np.random.default_rng(words.tolist())
    drawn = rng.integers(0, 2, (*batch_shape, n, m))
    return torch.as_tensor(2.0 * drawn - 1.0).to(dtype=dtype, device=device)


def record(
    epochs: int = EPOCHS,
    progress: Callable[[int, int], None] | None = None,
    *,
    alpha: float = LEVELS[-1],
    subject: Subject | None = None,
    prefix: str = "control",
) -> Record:
    """Put the control through tier S with fresh seeds in each epoch, and count false alarms.

    Args:
        epochs: How many runs.
        progress: Called with the epochs done and all of them.
        alpha: Level of one run: its families share it equally, as in the gate.
        subject: Another subject in place of the control, to see it rejected.
        prefix: Start of the epochs' names, and so of their seeds; the level is part of them.

    Returns:
        The record: how many runs were rejected, the 95 % interval of the rate (Clopper–Pearson),
        and the p-value of every family of every run. It is consistent if the rate may be the
        nominal one or less, no family's scores are off (at 1e-3 for all of them together), and
        there are at least 20 epochs: fewer show nothing.

    Raises:
        ValueError: If there is no epoch, or the level is not in (0, 1).
    """
    if epochs < 1 or not 0 < alpha < 1:
        raise ValueError(f"At least one epoch and a level in (0, 1), got {epochs} and {alpha}.")
    subject = subject or control_subject()
    share = alpha / len(sampling.VALUES)
    runs = []
    for epoch in range(epochs):
        settings = Settings(epoch=f"{prefix} {alpha:g} {epoch}", alpha=share)
        runs.append(sampling.run(subject, settings))
        if progress:
            progress(epoch + 1, epochs)
    rejected = sum(any(check.verdict == FAIL for check in checks) for checks in runs)
    low, high = clopper_pearson(rejected, epochs)
    families = [_family(name, runs) for name in _names(runs)]
    off = [f["name"] for f in families if not f["p"] > SCORES_LEVEL / len(families)]
    return {
        "kind": "control",
        "id": f"{subject.name} at {alpha:g}",
        "epochs": epochs,
        "rejected": rejected,
        "nominal": alpha,
        "interval": [low, high],
        "p_values": [check.p for checks in runs for check in checks if check.p is not None],
        "scores": [check.z for checks in runs for check in checks if check.z is not None],
        "consistent": epochs >= LEAST and low <= alpha and bool(families) and not off,
        "families": families,
    }


def clopper_pearson(k: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Exact interval of a probability after k successes in n trials."""
    tail = (1 - level) / 2
    low = float(stats.beta.ppf(tail, k, n - k + 1)) if k else 0.0
    high = float(stats.beta.isf(tail, k + 1, n - k)) if k < n else 1.0
    return low, high


def _names(runs: Iterable[list[Check]]) -> list[str]:
    return sorted({check.name for checks in runs for check in checks if check.p is not None})


def _family(name: str, runs: Iterable[list[Check]]) -> Record:
    """One question over all epochs: its scores should be standard normal.

    Escalation replaces the scores of suspicious looks, which makes large ones rarer, never more
    frequent: a test against wide or shifted scores keeps its level.
    """
    asked = [check for checks in runs for check in checks if check.name == name]
    z = np.array([check.z for check in asked if check.z is not None])
    return {
        "name": name,
        "runs": len(asked),
        "rejected": sum(check.verdict == FAIL for check in asked),
        "mean": float(z.mean()),
        "rms": float(np.sqrt(np.mean(z**2))),
        "p": multiplicity.combined(z, SCORES_LEVEL).p,
    }
