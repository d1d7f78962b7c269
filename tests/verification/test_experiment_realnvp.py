"""The RealNVP experiment: what it measures, how it resumes, and that it stops on nonsense."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from itertools import permutations

import pytest
import torch
from torch.testing import assert_close

from specbp import Jacobian, generator_for
from specbp.models import Flow
from verification.experiments import realnvp, realnvp_measure, realnvp_report, realnvp_training
from verification.experiments.realnvp import QUICK, TrainingError, checkpoint_path, train
from verification.experiments.realnvp_measure import METHODS, estimates, wasserstein
from verification.experiments.realnvp_report import DRAWN, PLAIN
from verification.experiments.realnvp_training import (
    TRAINERS,
    MaximumLikelihood,
    ToPixels,
    Wasserstein,
    bits_per_dim,
    dequantised,
    generator_flow,
    held_out,
)

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is:DeprecationWarning")

TINY = replace(QUICK, mle_steps=4, wgan_steps=4, layers=2, hidden=8, critic_width=8, points=2)
HALVES = (0.0, 0.5, 1.0)
every_objective = pytest.mark.parametrize("objective", TRAINERS)


@pytest.fixture
def weights_alone(monkeypatch):
    """Measure nothing but the weights: the loop is what is tested."""

    def measure(trainer, step, loss):
        total = sum(float(p.detach().double().square().sum()) for p in trainer.flow.parameters())
        return {"step": step, "loss": loss, "weights": total}

    monkeypatch.setattr(realnvp, "measure", measure)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    out = tmp_path_factory.mktemp("realnvp")
    with pytest.MonkeyPatch.context() as patch:
        quick = replace(QUICK, mle_steps=20, wgan_steps=4, layers=2, points=2)
        patch.setattr(realnvp, "QUICK", quick)
        patch.setattr(realnvp, "QUICK_STAGES", (0.0, 1.0))
        shown = {name: METHODS[name] for name in ("QR", PLAIN, *DRAWN)}
        patch.setattr(realnvp_measure, "METHODS", shown)
        assert realnvp.main(["--quick", "--out", str(out)]) == 0
    return out, json.loads((out / "results.json").read_text("utf-8"))


def mean_log_prob(flow: Flow) -> float:
    with torch.no_grad():
        return float(flow.log_prob(held_out()).mean())


# Data and densities -------------------------------------------------------------------------------


def test_dequantised_digits_fill_the_bins_of_their_grey_values():
    values = torch.arange(17.0).repeat(1000, 1)
    x = dequantised(values, generator_for("test"))
    assert torch.equal((x * 17).floor(), values)
    assert abs(float((x * 17 - values).mean()) - 0.5) < 0.01


def test_bits_of_the_uniform_density_are_those_of_17_levels():
    assert_close(bits_per_dim(torch.zeros(1)), torch.tensor([math.log2(17)]))
    # Half the cube at twice the density is one bit less for all 64 pixels together.
    assert_close(bits_per_dim(torch.tensor([math.log(2)])), torch.tensor([math.log2(17) - 1 / 64]))


def test_density_of_pixels_is_the_change_of_variables():
    flow = ToPixels(5).double()
    h = torch.linspace(-3, 3, 5, dtype=torch.float64)
    J = torch.func.jacfwd(flow)(h)
    assert_close(flow.log_det(h), torch.linalg.slogdet(J).logabsdet, rtol=0, atol=1e-12)
    assert_close(flow.inverse(flow(h)), h, rtol=0, atol=1e-12)
    ends = flow.inverse(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert torch.isfinite(ends).all()


def test_held_out_digits_are_not_trained_on():
    x = held_out()
    assert x.shape == (297, 64)
    assert torch.equal(x, held_out())
    assert ((x >= 0) & (x <= 1)).all()
    assert not torch.equal(x, realnvp_training.trained_on())


# Measurements -------------------------------------------------------------------------------------


def test_wasserstein_is_the_best_assignment():
    a, b = torch.rand(2, 4, 3, generator=generator_for("assignment"))
    costs = [sum((a[i] - b[j]).norm() for i, j in enumerate(p)) / 4 for p in permutations(range(4))]
    assert_close(wasserstein(a, b), float(min(costs)), rtol=1e-6, atol=0)


def test_estimates_at_codes():
    flow = generator_flow(TINY).double().requires_grad_(False)
    z = torch.randn(3, 64, dtype=torch.float64, generator=generator_for("codes"))
    found = estimates(flow, z, TINY)
    eigenvalues = torch.linalg.svdvals(Jacobian(flow, z).dense()).square()
    assert_close(found["log_sum"], float(eigenvalues.log().abs().sum(-1).mean()))
    ratio = (eigenvalues[:, 0] / eigenvalues[:, -1]).sqrt()
    assert_close(found["condition"]["max"], float(ratio.max()))
    exact = flow.log_prob(flow(z))
    assert_close(found["bits"], float(bits_per_dim(exact).mean()), rtol=1e-9, atol=0)
    assert set(found["methods"]) == set(METHODS) > set(realnvp_report.COLOUR)
    for name, method in found["methods"].items():
        assert method["failed"] == 0
        assert method["mean_abs_error"] >= abs(method["mean_error"])
        error = method["bits"] - found["bits"]
        expected = method["mean_error"] / (2 * 64 * math.log(2))
        assert_close(error, expected, rtol=1e-3, atol=1e-6, msg=name)
    assert found["methods"]["QR"]["mean_abs_error"] < 1e-9
    assert found["methods"]["QR"]["covered"] == 1
    assert math.isnan(found["methods"]["SLQ, 16 steps"]["covered"])  # open below
    # The error of a mean of three independent errors, in bits/dim: at least their mean over √3.
    method = found["methods"]["Golub–Kahan, 16 steps"]
    ratio = method["bits_standard_error"] * 2 * 64 * math.log(2) / method["standard_error"]
    assert 3**-0.5 <= ratio < 1.2 * 3**-0.5
    few, more = (found["methods"][f"Golub–Kahan, {k} steps"] for k in (8, 16))
    assert (few["products"], more["products"]) == (8 * TINY.probes, 16 * TINY.probes)
    assert more["mean_error"] <= few["mean_error"] + 1e-9  # the Gauss rule falls with its steps


def test_a_failed_estimate_is_counted_and_left_out():
    flow = generator_flow(TINY).double().requires_grad_(False)
    z = torch.zeros(2, 64, dtype=torch.float64)

    def broken(J, probes):
        found = METHODS["QR"][1](J, probes)
        return replace(found, value=found.value * torch.tensor([1.0, math.nan]))

    found = realnvp_measure._compare(flow, z, flow.log_det(z), TINY, torch.float64, broken)
    assert found["failed"] == 1
    assert found["mean_abs_error"] < 1e-9


# Training -----------------------------------------------------------------------------------------


def test_maximum_likelihood_gains_likelihood():
    trainer = MaximumLikelihood(replace(TINY, mle_steps=40))
    before = mean_log_prob(trainer.flow)
    for step in range(40):
        trainer.update(step)
    assert mean_log_prob(trainer.flow) > before + 20


def test_the_critic_learns_to_tell_samples_from_digits():
    trainer = Wasserstein(replace(TINY, critic_steps=40, critic_width=32))
    trainer.update(0)
    with torch.no_grad():
        samples = trainer.flow(torch.randn(297, 64, generator=generator_for("samples")))
    assert trainer.distance(samples) > 1
    flipped = trainer.distance(held_out())
    assert abs(flipped) < 1e-6


@every_objective
def test_a_stopped_run_resumes_as_if_it_had_not_been(objective, tmp_path, weights_alone):
    whole = train(objective, TINY, HALVES, tmp_path / "whole")
    update, done = TRAINERS[objective].update, []

    def until_three(self, step):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(step)
        return update(self, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TRAINERS[objective], "update", until_three)
        with pytest.raises(KeyboardInterrupt):
            train(objective, TINY, HALVES, tmp_path / "stopped")
        done.clear()
        resumed = train(objective, TINY, HALVES, tmp_path / "stopped")
        assert done == [2, 3]  # from the checkpoint after two steps
    for a, b in zip(whole, resumed, strict=True):
        assert (a["step"], a["loss"], a["weights"]) == (b["step"], b["loss"], b["weights"])
    assert len({record["weights"] for record in whole}) == 3
    assert not list(tmp_path.glob("**/*.tmp"))


def test_another_run_does_not_resume_from_this_one(tmp_path):
    paths = {
        checkpoint_path(objective, settings, stages, tmp_path)
        for objective in TRAINERS
        for settings in (TINY, replace(TINY, seed=1))
        for stages in (HALVES, (0.0, 1.0))
    }
    assert len(paths) == 8


@every_objective
def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(
    objective, tmp_path, weights_alone, monkeypatch
):
    update = TRAINERS[objective].update
    diverging = lambda self, step: update(self, step) if step < 3 else math.nan  # noqa: E731
    monkeypatch.setattr(TRAINERS[objective], "update", diverging)
    with pytest.raises(TrainingError, match=r"step 3 is nan.*last good checkpoint.*Lower the"):
        train(objective, TINY, HALVES, tmp_path)
    (checkpoint,) = tmp_path.glob("*.pt")
    assert torch.load(checkpoint, weights_only=True)["step"] == 2


def test_the_command_ends_with_the_reason(tmp_path, weights_alone, monkeypatch):
    monkeypatch.setattr(MaximumLikelihood, "update", lambda *_: math.inf)
    with pytest.raises(SystemExit, match="MaximumLikelihood at step 0 is inf"):
        realnvp.main(["--quick", "--out", str(tmp_path)])
    assert not (tmp_path / "results.json").exists()


def test_spoilt_weights_never_become_a_checkpoint(tmp_path, weights_alone, monkeypatch):
    update = MaximumLikelihood.update

    def spoil(self, step):
        loss = update(self, step)
        if step == 1:
            next(self.flow.parameters()).data[0] = math.inf
        return loss

    monkeypatch.setattr(MaximumLikelihood, "update", spoil)
    with pytest.raises(TrainingError, match="at step 2 is not finite"):
        train("mle", TINY, HALVES, tmp_path)
    (checkpoint,) = tmp_path.glob("*.pt")
    assert torch.load(checkpoint, weights_only=True)["step"] == 0


def test_a_damaged_checkpoint_is_named(tmp_path, weights_alone):
    train("mle", TINY, HALVES, tmp_path)
    (checkpoint,) = tmp_path.glob("*.pt")
    checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    with pytest.raises(TrainingError, match=f"{checkpoint.name} cannot be read.*delete it"):
        train("mle", TINY, HALVES, tmp_path)


def test_both_objectives_start_from_the_same_weights():
    first, second = (TRAINERS[objective](TINY).flow.state_dict() for objective in TRAINERS)
    assert all(torch.equal(first[key], second[key]) for key in first)


# Report -------------------------------------------------------------------------------------------


def test_the_report_holds_what_was_measured(report):
    out, results = report
    assert {path.name for path in out.iterdir()} == {
        ".results", "README.md", "results.json", "bits.png", "error.png", "samples.png"
    }  # fmt: skip
    page = (out / "README.md").read_text("utf-8")
    for run in results["runs"].values():
        assert run[-1]["round_trip"] < 1e-9
        assert f"{run[-1]['bits']['held-out']:.2f} at last" in page
        assert f"| {run[-1]['wasserstein']:.3g} |" in page
    assert "nan |" not in page


def test_the_report_says_below_or_above_the_uniform_density(report):
    _, results = report
    worse = copy.deepcopy(results)
    for sign, word in ((1, "above"), (-1, "below")):
        worse["runs"]["mle"][-1]["bits"]["held-out"] = results["uniform_bits"] + 2 * sign
        assert f"2.00 {word} the uniform density" in realnvp_report.findings(worse)[0]


def test_redraw_needs_results(tmp_path, report, monkeypatch):
    with pytest.raises(SystemExit, match="run without it first"):
        realnvp.main(["--redraw", "--out", str(tmp_path)])
    monkeypatch.setattr(realnvp_report, "_save", lambda *_: None)
    out, _ = report
    before = (out / "README.md").read_text("utf-8")
    (out / "README.md").unlink()
    assert realnvp.main(["--redraw", "--out", str(out)]) == 0
    assert (out / "README.md").read_text("utf-8") == before
