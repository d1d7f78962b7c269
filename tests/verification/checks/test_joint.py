"""Checks of estimators that use their probes jointly: each finds the fault it is there for."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from specbp.methods import METHODS
from specbp.testing.outcome import FAIL, PASS, REPORTED
from verification import baseline_rows, checks, subjects
from verification.checks import aggregation, claims, exactness, metamorphic, replicates, sampling
from verification.checks.problems import problem
from verification.checks.settings import Settings
from verification.subjects import from_method

BLOCK, MULTILEVEL, NYSTROM, XTRACE, HUTCHPP, RANDOM, MAXENT = (
    from_method(METHODS[name])
    for name in (
        "block_slq",
        "multilevel",
        "nystrom",
        "xtrace",
        "hutchpp",
        "randomised_chebyshev",
        "maxent",
    )
)
SMALL = Settings(dtypes=("float64",))


def verdicts(claim, subject):
    return [check.verdict for check in claim(subject, SMALL)]


def changed(subject, change):
    def estimate(A, X, **config):
        found = subject.estimate(A, X, **config)
        return replace(found, **change(found, X))

    return replace(subject, estimate=estimate)


def shifted(subject, amount):
    return changed(subject, lambda found, _: {"value": found.value + amount})


@pytest.mark.parametrize("subject", [BLOCK, MULTILEVEL, NYSTROM], ids=lambda s: s.name)
def test_krylov_estimators_are_unbiased_where_their_spaces_are_complete(subject):
    assert verdicts(exactness.joint_complete, subject) == [PASS]
    assert verdicts(exactness.joint_complete, shifted(subject, 1e-6)) == [FAIL]


def test_too_few_steps_are_a_bias():
    def one_level(A, X, *, num_steps, **config):
        return BLOCK.estimate(A, X, num_steps=1, **config)

    assert verdicts(exactness.joint_complete, replace(BLOCK, estimate=one_level)) == [FAIL]


def test_nothing_is_enumerated_for_other_laws_and_kinds():
    for subject in (replace(BLOCK, law="sphere"), XTRACE, MAXENT):
        assert verdicts(exactness.joint_complete, subject) == []
    assert verdicts(exactness.joint, BLOCK) == []


def test_values_are_exact_from_the_number_of_probes_that_is_claimed():
    assert verdicts(exactness.exact_from, XTRACE) == [PASS]
    assert verdicts(exactness.exact_from, shifted(XTRACE, 1e-6)) == [FAIL]
    too_early = replace(XTRACE.claims, exact_from=lambda n, m, _c: m >= n - 1)
    assert verdicts(exactness.exact_from, replace(XTRACE, claims=too_early)) == [FAIL]
    never = replace(XTRACE.claims, exact_from=lambda _n, _m, _c: False)
    assert verdicts(exactness.exact_from, replace(XTRACE, claims=never)) == [FAIL]
    assert verdicts(exactness.exact_from, HUTCHPP) == []


def test_error_bars_are_enumerated_with_as_many_probes_as_they_take():
    assert verdicts(exactness.error_bars, HUTCHPP) == [PASS]
    larger = changed(HUTCHPP, lambda found, _: {"standard_error": 1.01 * found.standard_error})
    assert verdicts(exactness.error_bars, larger) == [FAIL]
    assert verdicts(exactness.error_bars, MULTILEVEL) == [PASS]
    fewer = replace(MULTILEVEL, claims=replace(MULTILEVEL.claims, bar_probes=2))
    assert verdicts(exactness.error_bars, fewer) == [FAIL]  # NaN with three probes


@pytest.mark.parametrize(("subject", "of"), [(NYSTROM, "complete"), (MULTILEVEL, "forms")])
def test_brackets_are_of_what_they_say(subject, of):
    assert subject.claims.bracket_of == of
    assert verdicts(exactness.bracket, subject) == [PASS]
    low = changed(subject, lambda found, _: {"upper": found.upper - 1.0})
    assert verdicts(exactness.bracket, low) == [FAIL]


def test_a_bracket_of_the_truth_is_compared_with_the_truth():
    def certain(found, _):
        return {"upper": torch.full_like(found.upper, 1e9)}

    claimed = replace(MULTILEVEL.claims, bracket_of="truth")
    assert verdicts(exactness.bracket, replace(MULTILEVEL, claims=claimed)) == [FAIL]
    sure = replace(changed(MULTILEVEL, certain), claims=claimed)
    assert verdicts(exactness.bracket, sure) == [PASS]


def test_scaling_and_evenness_are_asked_of_blocks():
    assert verdicts(metamorphic.scaling, XTRACE) == verdicts(metamorphic.evenness, XTRACE) == [PASS]

    def absolute(A, X, **config):
        return XTRACE.estimate(A.masked_fill(A.abs() < 1e-6, 0), X, **config)

    def odd(found, X):
        return {"value": found.value + 1e-3 * X.sum((-2, -1))}

    assert verdicts(metamorphic.scaling, replace(XTRACE, estimate=absolute)) == [FAIL]
    assert verdicts(metamorphic.evenness, changed(XTRACE, odd)) == [FAIL]


def test_a_probe_that_is_not_used_is_noticed_although_many_would_be_exact():
    assert verdicts(aggregation.depends_on_probes, BLOCK) == [PASS]

    def deaf(A, X, **config):
        return BLOCK.estimate(A, torch.cat([X[..., :-1], X[..., :1]], -1), **config)

    assert verdicts(aggregation.depends_on_probes, replace(BLOCK, estimate=deaf)) == [FAIL]


def test_questions_that_are_not_asked_are_listed():
    found = {c.name: c for c in checks.run(HUTCHPP, "D", SMALL)}
    assert found["D1 probe"].verdict == REPORTED
    assert checks.LEFT_OUT in found["D5 homogeneity"].message
    assert {c.verdict for c in found.values()} == {PASS, REPORTED}
    assert all(c.verdict != REPORTED for c in checks.run(from_method(METHODS["hutchinson"]), "D"))


def test_sampling_puts_krylov_estimators_where_only_chance_is_left():
    prepared = replicates.prepared(BLOCK)
    refs = replicates.references(prepared)
    assert [str(ref.cell.spectrum) for ref in refs] == ["few"] * len(replicates.FEW_GRID)
    assert all(prepared.config["num_steps"] * ref.cell.m < ref.cell.n for ref in refs)
    settings = Settings(alpha=3e-6, sizes=(64, 256))
    right = {c.name: c.verdict for c in sampling.run(BLOCK, settings)}
    wrong = {c.name: c.verdict for c in sampling.run(shifted(BLOCK, 3.0), settings)}
    assert (right["S1 mean"], wrong["S1 mean"]) == (PASS, FAIL)


def test_of_a_model_no_mean_is_asked():
    found = [c.name for c in sampling.run(MAXENT, Settings(alpha=3e-6, sizes=(64,)))]
    assert found == ["S5 duplicates"]


# Random degrees ------------------------------------------------------------------------------


def test_degrees_are_a_function_of_the_probe_up_to_its_sign():
    X = RANDOM.draw(12, 2000, generator=torch.Generator().manual_seed(0))
    u = subjects.uniform_of(X)
    assert torch.equal(u, subjects.uniform_of(-X))
    assert torch.equal(u, subjects.uniform_of(X.float()))
    assert torch.equal(u[:5], subjects.uniform_of(X[:, :5]))
    assert len(u.unique()) == 2000
    # Kolmogorov–Smirnov at 1e-6.
    gaps = (u.sort().values - (torch.arange(2000) + 0.5) / 2000).abs()
    assert float(gaps.max()) < 2.7 / math.sqrt(2000)


def test_degrees_have_the_law_of_the_method():
    survival = torch.tensor([1.0, 1.0, 0.5, 0.25], dtype=torch.float64)
    X = RANDOM.draw(5, 4000, generator=torch.Generator().manual_seed(1))
    found = torch.bincount(subjects.degrees_of(X, survival), minlength=4) / 4000
    np.testing.assert_allclose(found, [0, 0.5, 0.25, 0.25], atol=5 * 0.5 / math.sqrt(4000))


def test_all_outcomes_of_a_random_degree_average_to_the_truth():
    assert verdicts(exactness.outcomes, RANDOM) == [PASS]
    view = problem("easy", 6).views["A"]
    values, weights = RANDOM.outcomes(view)
    assert float(weights.sum()) == pytest.approx(1, abs=1e-12)
    assert float(values @ weights) == pytest.approx(view.truth.value, rel=1e-10)


def test_a_law_that_is_not_that_of_the_weights_is_seen():
    row = METHODS["randomised_chebyshev"]

    def too_long(**arguments):
        survival = row.survival(**arguments)
        return torch.where(survival < 1, survival.sqrt(), survival)

    wrong = from_method(replace(row, survival=too_long))
    assert verdicts(exactness.outcomes, wrong) == [FAIL]


def test_rows_with_another_law_draw_by_it():
    X = XTRACE.draw(7, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(X.square().sum(0), torch.full((3,), 7.0, dtype=torch.float64))
    assert XTRACE.law == "sphere"


# The ratchet ----------------------------------------------------------------------------------


def test_the_ratchet_takes_joint_estimators_in_blocks():
    rows = baseline_rows.measure([XTRACE, MULTILEVEL])
    assert not [text for row in rows for text in row.broken_promises()]
    assert {row.figures[baseline_rows.PRODUCTS] for row in rows if "xtrace" in row.id} == {8.0}
    off = baseline_rows.measure([shifted(MULTILEVEL, 1.0)])
    for before, after in zip(rows[len(rows) // 2 :], off, strict=True):
        gap = after.figures[baseline_rows.BIAS] - before.figures[baseline_rows.BIAS]
        assert gap == pytest.approx(1.0, abs=1e-6)


def test_blocks_of_the_ratchet_span_what_they_can():
    blocks = baseline_rows._in_blocks(baseline_rows.design(10))
    assert blocks.shape == (128, 10, baseline_rows.BLOCK)
    ranks = torch.linalg.matrix_rank(blocks)
    assert float((ranks == baseline_rows.BLOCK).double().mean()) > 0.8  # of neighbours none would
    columns = {tuple(c) for c in blocks.mT.reshape(-1, 10).tolist()}
    assert len(columns) == 512
    assert claims.block_size(XTRACE) == claims.BLOCK


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, PASS), (1.3, PASS), (0.5, FAIL)])
def test_error_bars_that_are_too_small_are_noticed_and_large_ones_are_not(factor, verdict):
    subject = changed(BLOCK, lambda e, _: {"standard_error": factor * e.standard_error})
    found = {check.name: check.verdict for check in sampling.run(subject, SMALL)}
    assert found["S3 error bars"] == verdict
