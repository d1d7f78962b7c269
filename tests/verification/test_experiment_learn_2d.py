"""The plane experiment: its network by hand, its divergences, and runs that can be resumed."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

import pytest
import torch

from specbp import EstimationError, qr_logdet
from specbp.models import BottleneckResNet
from specbp.models.energies import DATA, ENERGIES
from tests.support import f64, generator, normal
from verification.experiments import learn_2d, learn_2d_evaluate, learn_2d_evidence
from verification.experiments.grid import grid_density, kl_divergence
from verification.experiments.learn_2d_logdets import LOGDETS, logdet_for
from verification.experiments.learn_2d_network import activation, value_and_jacobian
from verification.experiments.learn_2d_settings import (
    MODES,
    OURS,
    PAPER,
    SOURCES,
    TARGETS,
    settings_for,
    temperature,
)
from verification.experiments.learn_2d_train import CURVES, resume, save, start, train

NORMAL = learn_2d_evaluate.NORMAL


def network(seed=0, *, residual=1.0):
    """A small random network; residual = 0 makes it the identity."""
    f = BottleneckResNet(2, 8, 2, generator=generator(seed)).double()
    with torch.no_grad():
        for block in f.blocks:
            for p in block.linear3.parameters():
                p.mul_(residual)
    return f


def short(mode="annealed", target="u1", **changes):
    return settings_for(target, mode, **{"iterations": 12, "hidden": 8, **changes})


# The network --------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [0.0, 0.3])
def test_tangents_pushed_by_hand_are_the_jacobian(t):
    f, z = network(), normal(7, 2)

    def alone(z):
        return value_and_jacobian(f, z.unsqueeze(0), t).value.squeeze(0)

    value, J = value_and_jacobian(f, z, t)
    torch.testing.assert_close(J, torch.func.vmap(torch.func.jacrev(alone))(z))
    if t == 0:
        torch.testing.assert_close(value, f(z))


def test_smoothed_kinks_sharpen_to_leaky_relu():
    h = normal(50).requires_grad_()
    value, steepness = activation(h, 0.2, 0.3)
    torch.testing.assert_close(steepness, torch.autograd.grad(value.sum(), h)[0])
    h = h.detach()
    gaps = [
        float((activation(h, 0.2, t)[0] - activation(h, 0.2, 0.0)[0]).abs().max())
        for t in (0.3, 0.03)
    ]
    assert gaps[1] == pytest.approx(gaps[0] / 10, rel=0.2)
    assert gaps[0] <= 0.8 * 0.3 * 0.7  # t log 2 times the change of slope


# Settings -----------------------------------------------------------------------------------------


def test_every_setting_says_where_it_comes_from():
    assert set(SOURCES) == set(short().plain())
    assert {source for source, _ in SOURCES.values()} == {PAPER, OURS}
    assert (SOURCES["batch"][0], settings_for("u1", "exact").batch) == (PAPER, 64)


def test_kinks_sharpen_and_hold():
    settings = short(iterations=100)
    widths = [temperature(settings, k) for k in (0, 45, 90, 99)]
    assert widths == pytest.approx([0.3, (0.3 * 0.03) ** 0.5, 0.03, 0.03])
    assert temperature(short("exact"), 5) == 0


def test_unknown_runs_are_refused():
    with pytest.raises(ValueError, match="targets are u1, u2_confined"):
        settings_for("u9", "exact")
    with pytest.raises(ValueError, match="modes are annealed, exact"):
        settings_for("u1", "safe")
    with pytest.raises(ValueError, match="use one of exact, golub_kahan"):
        logdet_for(short(logdet="magic"))


@pytest.mark.parametrize("name", LOGDETS)
def test_estimators_are_exact_for_diagonal_jacobians_with_a_spectrum_in_the_interval(name):
    """xᵀ log(A) x is the trace for every sign vector; 32 degrees leave 1e-3 at most."""
    J = torch.diag_embed(0.5 + normal(9, 2).abs())
    settings = short(logdet=name, lower=1e-1)
    found = logdet_for(settings)(J, generator=generator(1))
    torch.testing.assert_close(found.value, qr_logdet(J).value, rtol=0, atol=1e-3)


# Training -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "target"), [("annealed", "u1"), ("algorithm1", "u3"), ("exact", "moons")]
)
def test_resumed_run_is_bit_identical(tmp_path, mode, target):
    settings, path = short(mode, target), tmp_path / "run.pt"
    whole = train(start(settings), every=5)
    train(start(settings), path, until=7, every=5)
    again = train(resume(settings, path), path, every=5)
    assert resume(settings, path).finished
    assert torch.equal(whole.curves, again.curves)
    assert whole.curves.shape == (12, len(CURVES))
    assert all(
        map(torch.equal, whole.network.state_dict().values(), again.network.state_dict().values())
    )
    assert whole.shown.keys() == again.shown.keys() == {0, 1, 3, 12}
    assert all(torch.equal(whole.shown[k], again.shown[k]) for k in whole.shown)
    assert [p.name for p in tmp_path.iterdir()] == ["run.pt"]


def test_checkpoint_of_other_settings_is_not_taken_up(tmp_path):
    path = tmp_path / "run.pt"
    train(start(short()), path, until=4)
    assert resume(short(), path).iteration == 4
    assert resume(replace(short(), learning_rate=1e-4), path).iteration == 0


def test_modes_start_from_the_same_network():
    states = [start(short(mode)) for mode in MODES]
    for state in states[1:]:
        torch.testing.assert_close(state.network.state_dict(), states[0].network.state_dict())


def test_training_lowers_the_objective():
    state = train(start(short(iterations=150, hidden=16)))
    objective = state.curve("objective")
    assert float(objective[-20:].mean()) < float(objective[:20].mean()) - 1


def test_monitors_tell_the_exact_likelihood_from_the_estimate():
    exact = train(start(short()))
    assert float(exact.curve("largest_error").max()) < 1e-12
    rough = train(start(short("algorithm1", degree=2)))
    assert float(rough.curve("relative_error").min()) > 1e-3
    assert not torch.equal(rough.curve("log_likelihood"), rough.curve("exact_log_likelihood"))
    assert float(rough.curve("probe_error").min()) > 0


def test_regulariser_adds_the_spectral_norm():
    state = train(start(short(spectral_weight=0.5)), until=3)
    added = state.curve("loss") - state.curve("objective")
    torch.testing.assert_close(added, 0.5 * state.curve("lambda_max"), rtol=1e-5, atol=0)


def test_parameters_that_are_not_finite_stop_the_run_and_keep_the_checkpoint(tmp_path):
    path = tmp_path / "run.pt"
    state = train(start(short()), path, until=4)
    kept = path.read_bytes()
    with torch.no_grad():
        state.network.blocks[0].linear1.weight.fill_(torch.nan)
    with pytest.raises(EstimationError, match=r"u1-annealed stopped at iteration 4: .*NaN at item"):
        train(state, path)
    assert path.read_bytes() == kept
    assert resume(short(), path).iteration == 4


def test_run_that_fails_keeps_the_state_before_the_failure(tmp_path, monkeypatch):
    """The fifth iteration fails, at the first attempt and at the second: with the same draws."""
    path, seen = tmp_path / "run.pt", []

    def logdet(J, generator):
        seen.append(J.detach().clone())
        failed = len(seen) in (5, 6)
        return qr_logdet(J * torch.nan if failed else J)

    monkeypatch.setitem(LOGDETS, "exact", lambda _: logdet)
    with pytest.raises(EstimationError, match="u1-annealed stopped at iteration 4: log p is NaN"):
        train(start(short()), path)
    state = resume(short(), path)
    assert state.iteration == 4
    with pytest.raises(EstimationError, match="stopped at iteration 4"):
        train(state, path)
    assert torch.equal(seen[4], seen[5])
    assert train(resume(short(), path), path).finished


def test_singular_map_stops_the_run():
    state = start(short("exact"))
    with torch.no_grad():
        for p in state.network.parameters():
            p.zero_()
        last = state.network.blocks[-1]
        # x - (1, 0)ᵀ a(a(x1 + 50) + 0) collapses the first coordinate: LeakyReLU is linear there.
        last.linear1.weight[0, 0], last.linear1.bias[0] = 1.0, 50.0
        last.linear2.weight[0, 0], last.linear3.weight[0, 0] = 1.0, -1.0
    with pytest.raises(EstimationError, match="stopped at iteration 0: log p is inf .*SINGULAR"):
        train(state)


# Evaluation ---------------------------------------------------------------------------------------


def test_density_of_the_identity_is_the_prior(monkeypatch):
    model = learn_2d_evaluate.Pushforward(network(residual=0.0))
    x = normal(200, 2)
    torch.testing.assert_close(model.log_prob(x), NORMAL.log_prob(x))
    box = ((-4.0, 4.0), (-4.0, 4.0))
    U = ENERGIES["u1"]
    p, q = grid_density(NORMAL.log_prob, box, 200), grid_density(lambda x: -U(x), box, 200)
    found = learn_2d_evaluate.sampled(model, "u1", 4000)
    assert abs(found["kl"] - kl_divergence(p, q)) < 4 * found["kl_error"]
    assert found["folding"] == pytest.approx(0, abs=1e-12)
    assert found["preimages"] == 1


def test_density_of_a_folding_network_has_mass_one():
    f = network(4)
    with torch.no_grad():
        for p in f.parameters():
            p.mul_(1.5)
    model = learn_2d_evaluate.Pushforward(f)
    z = NORMAL.sample(2000, generator=generator(2))
    x, J = value_and_jacobian(model.network, z)
    own = NORMAL.log_prob(z) - torch.linalg.slogdet(J)[1]
    full = model.log_prob(x)
    assert float((full - own).min()) > -1e-6
    assert float((full - own).max()) > 0.1, "take another seed: this network does not fold"
    found = learn_2d_evaluate.sampled(model, "u1", 500)
    assert found["kl"] - found["kl_single"] == pytest.approx(found["folding"])
    assert found["folding"] > 0.01
    assert found["preimages"] > 1
    low, high = x.amin(0) - 1, x.amax(0) + 1
    box = ((float(low[0]), float(high[0])), (float(low[1]), float(high[1])))
    mass = grid_density(model.log_prob, box, 300).log_normaliser
    assert mass == pytest.approx(0, abs=0.02)


def test_pulled_back_density_of_the_identity():
    found, log_density = learn_2d_evaluate.evaluate(network(residual=0.0), "moons")
    assert found["mass"] == pytest.approx(1, abs=1e-6)
    data = DATA["moons"]
    q = grid_density(data.log_prob, data.box, learn_2d_evaluate.CELLS)
    p = grid_density(NORMAL.log_prob, data.box, learn_2d_evaluate.CELLS)
    assert found["kl"] == pytest.approx(kl_divergence(q, p, normalise=False))
    torch.testing.assert_close(log_density, p.log_values)


def test_pathwise_gradient_sees_smooth_kinks_and_misses_sharp_ones(monkeypatch):
    monkeypatch.setattr(learn_2d_evidence, "WIDTHS", (0.3, 0.0))
    smooth, sharp = learn_2d_evidence.slopes(3000)
    assert abs(smooth["measured"] - smooth["promised"]) < 4 * smooth["measured_error"]
    assert abs(sharp["measured"] - sharp["promised"]) > 8 * sharp["measured_error"]


# The command --------------------------------------------------------------------------------------


def test_command_writes_a_report_from_its_own_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(learn_2d_evaluate, "CELLS", 24)
    monkeypatch.setattr(learn_2d_evaluate, "POINTS", 500)
    monkeypatch.setattr(learn_2d_evidence, "WIDTHS", (0.3,))
    parser = argparse.ArgumentParser()
    learn_2d.add_arguments(parser)
    command = ["--quick", "--only", "u1", "eight", "--modes", "algorithm1"]
    command += ["--iterations", "6", "--out", str(tmp_path / "out"), "--state", str(tmp_path / "s")]
    assert learn_2d.main(parser.parse_args(command)) == 0
    provenance, *records = json.loads((tmp_path / "out" / "results.json").read_text())
    assert provenance["kind"] == "provenance"
    runs = {r["id"]: r for r in records if r["kind"] == "run"}
    assert set(runs) == {"u1-algorithm1", "eight-algorithm1"}
    page = (tmp_path / "out" / "README.md").read_text()
    assert f"{runs['u1-algorithm1']['kl']:.4f}" in page
    assert f"{runs['eight-algorithm1']['mass']:.4f}" in page
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "README.md",
        "results.json",
        "u1.png",
        "eight.png",
    }
    assert sorted(p.name for p in (tmp_path / "s" / "networks").iterdir()) == ["u1-algorithm1.pt"]


def test_all_targets_have_an_energy_or_data():
    assert all((target in ENERGIES) != (target in DATA) for target in TARGETS)
    assert all(ENERGIES[t].normalised for t in TARGETS if t in ENERGIES)


def test_save_leaves_no_temporary_file(tmp_path):
    state = start(short())
    assert state.curves.dtype == f64
    save(state, tmp_path / "deep" / "run.pt")
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["run.pt"]
