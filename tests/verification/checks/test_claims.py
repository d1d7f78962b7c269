"""Claims: the worst error decides, NaN is worst of all, and an exception is a failure."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from specbp.methods import METHODS
from specbp.testing.outcome import FAIL, PASS
from verification.checks import claims
from verification.checks.claims import Gap, measured, worst_of
from verification.checks.problems import problem
from verification.checks.settings import Settings
from verification.subjects import from_method

CHEBYSHEV, SLQ = from_method(METHODS["chebyshev"]), from_method(METHODS["slq"])
ALGORITHM1 = from_method(METHODS["algorithm1"])


def test_worst_error_relative_to_its_limit_is_shown():
    check = worst_of("D1 x", "text", [Gap("here", 2.0, 4.0), Gap("there", 1.0, 1.5)])
    assert check.verdict == PASS
    assert "largest error 1 nats, limit 1.5, at there (worst of 2)" in check.message


def test_nan_beats_every_error():
    check = worst_of("D1 x", "text", [Gap("big", 9.0, 1.0), Gap("nan", math.nan, 1.0)])
    assert (check.verdict, check.margin) == (FAIL, 1.0)
    assert "nan" in check.message
    assert "at nan" in check.message


def test_zero_limit_allows_zero_only():
    assert worst_of("D9 x", "text", [Gap("a", 0.0, 0.0)]).verdict == PASS
    assert worst_of("D9 x", "text", [Gap("a", 0.0, 0.0), Gap("b", 0.5, 0.0)]).verdict == FAIL


@pytest.mark.parametrize("error", [TypeError("no such\nargument"), torch.linalg.LinAlgError("x")])
def test_exceptions_of_the_estimator_fail_with_their_reason(error):
    @measured("D1 x", "text")
    def check(_subject, _settings):
        yield Gap("first", 0.0, 1.0)
        raise error

    (found,) = check(CHEBYSHEV, Settings())
    assert (found.verdict, found.name, found.claim) == (FAIL, "D1 x", "text")
    assert f"raised {type(error).__name__}: {' '.join(str(error).split())}" == found.message


def test_interrupts_are_not_swallowed():
    @measured("D1 x", "text")
    def check(_subject, _settings):
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        check(CHEBYSHEV, Settings())


def test_no_error_measured_is_no_check():
    @measured("D1 x", "text")
    def check(_subject, _settings):
        yield from ()

    assert check(CHEBYSHEV, Settings()) == []


def test_cells_leave_out_what_rounding_decides():
    def spectra(subject, dtype):
        found = claims.cells(subject, ("easy", "cond 1e6"), 10, dtype)
        return [cell.where.partition(",")[0] for cell in found]

    assert spectra(SLQ, "float64") == ["easy", "cond 1e6"]
    assert spectra(SLQ, "float32") == ["easy"]


def test_allowance_of_an_adaptive_method_is_its_truncation():
    easy, hard = (problem(s, 10).views["A"] for s in ("easy", "cond 1e2"))
    assert claims.allowance(ALGORITHM1, easy) < 1e-10
    assert 1e-3 < claims.allowance(ALGORITHM1, hard) < 0.1
    assert claims.allowance(CHEBYSHEV, hard) == CHEBYSHEV.rounding(hard)


def test_wrong_shape_is_named():
    def one_value(A, X, **config):
        found = CHEBYSHEV.estimate(A, X, **config)
        return replace(found, value=found.value.sum())

    view = problem("easy", 10).views["A"]
    with pytest.raises(ValueError, match=r"shape \(\), required \(4,\)"):
        claims.singles(replace(CHEBYSHEV, estimate=one_value), view, claims.draw(view, 4, "test"))


def test_probes_are_signs_and_directions_of_length_root_n_in_the_dtype_of_the_view():
    X = claims.draw(problem("easy", 10, "float32").views["A"], 4, "test")
    assert X.dtype == torch.float32
    assert bool((X[:, :2].abs() == 1).all())
    assert not bool((X[:, 2:].abs() == 1).any())
    torch.testing.assert_close(X.square().sum(0), torch.full((4,), 10.0))


def test_furthest_names_the_probe():
    assert claims.furthest("w", np.array([0.1, -0.5, 0.2]), 1.0) == Gap("w, probe 1", 0.5, 1.0)
    assert claims.furthest("w", np.array([9.0, np.nan]), 1.0).where == "w, probe 1"


def test_complete_krylov_spaces():
    assert claims.is_complete(SLQ, 20)
    assert not claims.is_complete(SLQ, 21)
    assert claims.is_complete(CHEBYSHEV, 1000)
