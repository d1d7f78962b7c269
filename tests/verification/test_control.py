"""The A/A record: the control is right, and the record notices when the gate is not."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from specbp import exact, generator_for
from specbp.testing.outcome import FAIL, PASS, Check, normal_score
from verification import checks, control
from verification.checks import sampling
from verification.checks.problems import problem
from verification.checks.settings import Settings
from verification.store import strict

SETTINGS = Settings(epoch="test", alpha=1e-3)


@pytest.fixture
def scripted(monkeypatch):
    """Replace tier S by one family with the given scores, run after run."""

    def install(scores: list[float], level: float = 0.0125) -> list[Settings]:
        seen: list[Settings] = []

        def run(subject, settings):
            z = scores[len(seen)]
            seen.append(settings)
            p = 2 * stats.norm.sf(abs(z))
            verdict = FAIL if p <= level else PASS
            return [Check("S1 mean", "", verdict, z, 0.0, "", p=p, z=z)]

        monkeypatch.setattr(sampling, "run", run)
        return seen

    return install


def quiet_scores(epochs: int) -> list[float]:
    """Quantiles of the standard normal law, in an order of no meaning."""
    z = stats.norm.ppf((np.arange(epochs) + 0.5) / epochs)
    return np.random.default_rng(1).permutation(z).tolist()


# The control --------------------------------------------------------------------------------------


def test_the_estimate_is_that_of_the_definition():
    view = problem("cond 1e2", 10).views["A"]
    X = control.signs(10, 5, generator=generator_for("test"))
    found = control.dense_estimate(view.operator, X)
    B = exact.matrix_function(view.eigenvalues, view.eigenvectors, np.log)
    naive = [float(x @ B @ x) for x in X.numpy().T]
    np.testing.assert_allclose(found.samples.numpy(), naive, rtol=1e-10)
    assert float(found.value) == pytest.approx(np.mean(naive))
    assert float(found.standard_error) == pytest.approx(np.std(naive, ddof=1) / math.sqrt(5))


def test_blocks_are_single_calls_and_one_probe_has_no_error():
    A = problem("cond 1e2", 10).views["A"].operator
    X = control.signs(10, 1, generator=generator_for("test"), batch_shape=(3,))
    found = control.dense_estimate(A, X)
    alone = [float(control.dense_estimate(A, x).value) for x in X]
    np.testing.assert_allclose(found.value.numpy(), alone, rtol=1e-12)
    assert found.standard_error.isnan().all()


def test_signs_follow_their_generator_and_nothing_else():
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    one, other = (control.signs(7, 3, generator=generator_for("a")) for _ in range(2))
    assert torch.equal(one, other)
    generator = generator_for("a")
    control.signs(7, 3, generator=generator)
    assert not torch.equal(control.signs(7, 3, generator=generator), one)
    assert torch.equal(one.abs(), torch.ones(7, 3, dtype=torch.float64))
    after = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1] == after[1]


def test_the_control_passes_the_law_and_sampling_tiers():
    found = checks.run(control.control_subject(), "PS", SETTINGS)
    assert {check.verdict for check in found} == {PASS}
    assert len([c for c in found if c.p is not None]) > len(sampling.VALUES)


# The record ---------------------------------------------------------------------------------------


def test_a_record_of_the_real_gate():
    done = []
    record = control.record(3, progress=lambda *at: done.append(at))
    assert done == [(1, 3), (2, 3), (3, 3)]
    assert (record["kind"], record["id"], record["epochs"]) == ("control", "control at 0.05", 3)
    assert len(record["p_values"]) == 3 * len(sampling.VALUES)
    assert [f["name"] for f in record["families"]] == sorted(q.name for q in sampling.VALUES)
    assert strict(record) == json.loads(json.dumps(record))
    assert len(set(record["scores"])) == 3 * len(sampling.VALUES)  # p-values may all be 1


def test_epochs_have_seeds_and_a_level_of_their_own(scripted):
    seen = scripted(quiet_scores(5))
    control.record(5, alpha=0.08)
    assert len({settings.epoch for settings in seen}) == 5
    assert {settings.alpha for settings in seen} == {0.08 / len(sampling.VALUES)}


def biased(operator, probes):
    found = control.dense_estimate(operator, probes)
    return replace(found, value=1.2 * found.value)


def too_sure(operator, probes):
    found = control.dense_estimate(operator, probes)
    return replace(found, standard_error=found.standard_error * 0.5)


@pytest.mark.parametrize(("estimate", "name"), [(biased, "S1 mean"), (too_sure, "S3 error bars")])
def test_a_wrong_estimator_is_rejected_in_every_epoch(estimate, name):
    subject = replace(control.control_subject(), estimate=estimate)
    record = control.record(4, subject=subject)
    assert record["rejected"] == 4
    assert not record["consistent"]
    rejected = {f["name"]: f["rejected"] for f in record["families"]}
    assert rejected[name] == 4


def test_too_many_false_alarms_are_inconsistent(scripted):
    scores = quiet_scores(200)
    scripted(scores)
    assert control.record(200)["consistent"]
    scripted([-3.0 if i % 10 == 0 else z for i, z in enumerate(scores)])
    record = control.record(200)
    assert record["rejected"] >= 20
    assert record["interval"][0] > record["nominal"]
    assert not record["consistent"]


def test_false_alarms_on_right_scores_are_inconsistent_too(scripted):
    scripted(quiet_scores(200), level=0.2)
    record = control.record(200)
    assert record["rejected"] == 40
    assert not record["consistent"]


@pytest.mark.parametrize("fault", [lambda z: z + 0.4, lambda z: 1.3 * z])
def test_scores_that_are_off_are_inconsistent_even_without_false_alarms(scripted, fault):
    scripted([fault(z) for z in quiet_scores(200)], level=0.0)
    record = control.record(200)
    assert record["rejected"] == 0
    assert not record["consistent"]


def test_a_failure_without_chance_counts(scripted, monkeypatch):
    broken = Check("S5 duplicates", "", FAIL, 1.0, 0.0, "")
    good = Check("S1 mean", "", PASS, 0.0, 0.0, "", p=0.5, z=normal_score(0.5))
    monkeypatch.setattr(sampling, "run", lambda subject, settings: [good, broken])
    assert control.record(2)["rejected"] == 2


def test_too_few_epochs_are_not_called_consistent(scripted):
    verdict = {}
    for epochs in (1, 19, 20):
        scripted(quiet_scores(epochs))
        verdict[epochs] = control.record(epochs)["consistent"]
    assert verdict == {1: False, 19: False, 20: True}


def test_a_gate_that_checks_nothing_is_not_consistent(monkeypatch):
    monkeypatch.setattr(sampling, "run", lambda subject, settings: [])
    assert not control.record(20)["consistent"]


@pytest.mark.parametrize(("k", "n"), [(0, 200), (1, 200), (7, 50), (50, 50)])
def test_the_interval_is_that_of_clopper_and_pearson(k, n):
    low, high = control.clopper_pearson(k, n)
    known = stats.binomtest(k, n).proportion_ci(0.95, method="exact")
    assert (low, high) == pytest.approx((known.low, known.high), abs=1e-12)


@pytest.mark.parametrize(("epochs", "alpha"), [(0, 0.05), (5, 0.0), (5, 1.0)])
def test_impossible_settings_are_refused(epochs, alpha):
    with pytest.raises(ValueError, match="At least one epoch"):
        control.record(epochs, alpha=alpha)
