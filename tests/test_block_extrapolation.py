"""The chance in an extrapolated truncation: what each probe moved, and the error bar with it."""

from __future__ import annotations

import pytest
import torch

from specbp import generator_for, sphere
from specbp.block import block_lanczos
from specbp.block_rules import _sequence, extrapolated, limit, spectrum
from specbp.blockquad import block_slq_logdet
from specbp.operators import Dense
from tests.support import f64, geometric, log_forms, normal, spd


def test_forms_of_an_explicit_matrix():
    A, X = spd(geometric(8, 9.0)), normal(8, 8)
    K = block_lanczos(A, X.mT.contiguous(), 1)
    torch.testing.assert_close(spectrum(K).forms(K.start), log_forms(A, X), rtol=0, atol=1e-10)


def space(n, cond, m, steps, batch=()):
    lam = torch.logspace(0, -cond, n, dtype=f64)
    X = sphere(n, m, generator=generator_for("extrapolation", n, m), batch_shape=batch)
    return block_lanczos(Dense(torch.diag(lam)), X.mT.contiguous(), steps), lam, X


@pytest.mark.parametrize("cond", [2, 4])
def test_moves_are_the_derivative_in_the_weight_of_a_probe(cond):
    K, _, _ = space(120, cond, 5, 12)
    forms = spectrum(K).forms(K.start)
    total, _, moves = extrapolated(K, forms)
    each = _sequence(K, forms)
    assert float(moves.sum().abs()) < 1e-9 * float(total)
    for probe in range(5):

        def weighted(h, probe=probe):
            values = [v.mean(-1) + h * (v[probe] - v.mean(-1)) for v in each]
            return float(limit(values)[0])

        slope = (weighted(1e-5) - weighted(-1e-5)) / 2e-5
        assert float(moves[probe]) == pytest.approx(slope, rel=1e-4, abs=1e-7)


def test_error_bar_holds_the_chance_in_the_extrapolation():
    """Most of the truncation is extrapolated here; a bar without that chance is too short."""
    lam = torch.logspace(0, -6, 400, dtype=f64)
    X = sphere(400, 10, generator=generator_for("bars"), batch_shape=(60,))
    found = block_slq_logdet(torch.diag(lam), X, num_steps=8)
    ratio = float(found.standard_error.square().mean() / found.value.var())
    assert 0.5 < ratio < 4
