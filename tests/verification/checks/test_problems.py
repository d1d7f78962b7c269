"""Problems of the gate: what each view says of its operator is true of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from verification.checks import problems
from verification.checks.problems import SPECTRA, problem


def gram(operator, on):
    return operator.mT @ operator if on == "J" else operator


@pytest.mark.parametrize("on", ["A", "J"])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_views_have_their_spectrum(spectrum, on):
    view = problem(spectrum, 10).views[on]
    expected = SPECTRA[spectrum](10).sort().values.numpy()
    np.testing.assert_allclose(np.sort(view.eigenvalues), expected, rtol=1e-9)
    assert view.truth.value == pytest.approx(np.log(expected).sum(), abs=1e-8)


def test_few_has_five_distinct_eigenvalues():
    assert len(SPECTRA["few"](64).unique()) == problems.FEW


@pytest.mark.parametrize("on", ["A", "J"])
def test_scaled_is_exact(on):
    view = problem("cond 1e2", 10).views[on]
    scaled = problems.scaled(view, on, 4.0)
    assert torch.equal(gram(scaled.operator, on), 16 * gram(view.operator, on))
    assert np.array_equal(scaled.eigenvalues, 16 * view.eigenvalues)
    expected = np.log(scaled.eigenvalues).sum()
    assert scaled.truth.value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("on", ["A", "J"])
def test_block_diagonal_has_the_spectra_of_its_blocks(on):
    parts = [problem(s, 5).views[on] for s in ("easy", "cond 1e2")]
    whole = problems.block_diagonal(parts, on)
    expected = np.sort(np.concatenate([part.eigenvalues for part in parts]))
    np.testing.assert_allclose(np.sort(whole.eigenvalues), expected, rtol=1e-10)
    assert whole.operator[:5, 5:].count_nonzero() == 0


def test_multiple_of_identity_is_one():
    view = problems.multiple_of_identity(4, 3.0).views["A"]
    assert torch.equal(view.operator, 3 * torch.eye(4, dtype=torch.float64))


@pytest.mark.parametrize(
    ("on", "kind", "smallest"),
    [("A", "singular", 0.0), ("J", "singular", 0.0), ("A", "indefinite", -0.3)],
)
def test_degenerate_moves_the_smallest_eigenvalue_only(on, kind, smallest):
    view = problem("easy", 10).views[on]
    moved = torch.linalg.eigvalsh(gram(problems.degenerate(view, on, kind), on)).numpy()
    assert moved[0] == pytest.approx(smallest, abs=1e-14)
    np.testing.assert_allclose(moved[1:], np.sort(view.eigenvalues)[1:], rtol=1e-12)
