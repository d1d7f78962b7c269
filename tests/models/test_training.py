"""Training is deterministic and honest; weight files are what the manifest says."""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import replace

import pytest
import torch
from torch.func import jvp
from torch.testing import assert_close

from verification import digits, training
from verification.digits import NUM_TRAIN, Decode, Denoise
from verification.training import COMMAND, MODELS, WEIGHTS, WeightsError, build, fit, points

MANIFEST = json.loads((WEIGHTS / "manifest.json").read_text("utf-8"))
QUICK = "bottleneck-d2"
every_model = pytest.mark.parametrize("name", MODELS)
one_of_each = pytest.mark.parametrize("name", [QUICK, "wideresnet-1x8x8", "dcgan-z16"])


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder in place of the committed weights, and a network that trains at once."""
    monkeypatch.setattr(training, "WEIGHTS", tmp_path)
    monkeypatch.setitem(MODELS, QUICK, replace(MODELS[QUICK], steps=3))
    return tmp_path


# What is committed --------------------------------------------------------------------------------


def test_registry_has_every_family_and_size():
    assert {
        "bottleneck-d2",
        "bottleneck-d64",
        "bottleneck-d256",
        "bottleneck-d784",
        "wideresnet-1x8x8",
        "dcgan-z16",
        "dcgan-z64",
        "dcgan-z128",
    } <= set(MODELS)


def test_manifest_and_folder_list_the_registry():
    assert set(MANIFEST) == set(MODELS)
    assert {path.stem for path in WEIGHTS.glob("*.safetensors")} == set(MODELS)


@every_model
def test_manifest_describes_the_file(name):
    content = (WEIGHTS / f"{name}.safetensors").read_bytes()
    assert hashlib.sha256(content).hexdigest() == MANIFEST[name]["sha256"]
    assert MANIFEST[name]["settings"] == MODELS[name].settings()
    assert MANIFEST[name]["num_parameters"] == len(weights(build(name, "digits")))
    assert set(MANIFEST[name]["versions"]) >= {"torch", "numpy", "scikit-learn", "safetensors"}


def test_files_are_small():
    sizes = [path.stat().st_size for path in WEIGHTS.iterdir()]
    assert max(sizes) < 2e6
    assert sum(sizes) < 4e6


@every_model
def test_training_helped(name):
    entry = MANIFEST[name]
    assert entry["final_loss"] < min(entry["initial_loss"], entry["trivial_loss"])


@one_of_each
def test_recorded_losses_are_those_of_the_files(name):
    inputs, targets = MODELS[name].task.held_out()
    for state, key in [("init", "initial_loss"), ("digits", "final_loss")]:
        loss = (build(name, state, torch.float64)(inputs) - targets).square().mean().item()
        # Recorded in float32 and computed in float64: sums of some 1000 terms, layer after layer.
        assert loss == pytest.approx(MANIFEST[name][key], rel=1e3 * torch.finfo(torch.float32).eps)


@pytest.mark.slow
@every_model
@pytest.mark.parametrize("state", ["init", "digits"])
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is:DeprecationWarning")
def test_metrics_are_not_singular(name, state):
    # float32, for speed: it moves the singular values by about eps·σ_max, far below the limit.
    f = build(name, state, torch.float32)
    for z in points(name, 8, torch.float32):
        n = z.numel()
        basis = torch.eye(n, dtype=z.dtype).reshape(n, *z.shape)
        _, columns = jvp(f, (z.repeat(n, *[1] * z.ndim),), (basis,))  # a row per column of J
        s = torch.linalg.svdvals(columns.flatten(1).double())
        assert (s[0] / s[-1]) ** 2 < 1e8


# Building -----------------------------------------------------------------------------------------


@every_model
@pytest.mark.parametrize("state", ["init", "digits"])
def test_build(name, state):
    f = build(name, state, torch.float32)
    assert not f.training
    assert {(p.dtype, p.requires_grad) for p in f.parameters()} == {(torch.float32, False)}
    assert torch.equal(weights(f).double(), weights(build(name, state)))
    z = points(name, 2)
    y = build(name, state)(z)
    assert y.shape[0] == 2
    assert y.dtype == torch.float64
    assert y.isfinite().all()
    assert y.flatten(1).shape[1] >= z[0].numel()  # JᵀJ can only be regular if N >= n


@every_model
def test_states_differ(name):
    assert not torch.equal(weights(build(name, "init")), weights(build(name, "digits")))


def test_unknown_names_and_states_are_refused():
    for function in (build, lambda name: points(name, 1), training.train):
        with pytest.raises(KeyError, match="bottleneck-d2"):
            function("resnet-50")
    with pytest.raises(ValueError, match="'trained'"):
        build(QUICK, "trained")


@every_model
def test_larger_batches_of_points_extend_smaller_ones(name):
    z = points(name, 5)
    assert torch.equal(points(name, 3), z[:3])
    assert torch.equal(points(name, 3, torch.float32), z[:3].float())
    assert len(torch.unique(z, dim=0)) == 5


def test_points_are_not_shared():
    points(QUICK, 1).zero_()
    assert points(QUICK, 1).any()


@pytest.mark.parametrize("batch", [0, 298])
def test_impossible_batches_are_refused(batch):
    with pytest.raises(ValueError, match=f"between 1 and 297, got {batch}"):
        points(QUICK, batch)


# Tasks --------------------------------------------------------------------------------------------


def test_noise_and_dither_have_their_variances():
    task = Denoise((64,), 8, noise=0.5, dither=0.2)
    inputs, targets = task.held_out()
    clean = task._clean()[NUM_TRAIN:]
    for sample, sd in [(inputs - targets, 0.5), (targets - clean, 0.2)]:
        z = (sample.square().mean() / sd**2 - 1) * math.sqrt(sample.numel() / 2)
        assert abs(z) < 6
    assert task.trivial_loss() == pytest.approx((inputs - targets).square().mean().item())


def test_training_pairs_come_from_the_training_digits():
    task = Denoise((64,), 8, noise=0.0, dither=0.0)
    inputs, targets = next(task.batches(50, torch.Generator().manual_seed(0)))
    allowed = {tuple(row) for row in task._clean()[:NUM_TRAIN].tolist()}
    assert {tuple(row) for row in inputs.double().tolist()} <= allowed
    assert torch.equal(inputs, targets)
    assert not {tuple(row) for row in task.held_out()[0].tolist()} & allowed


def test_codes_are_white_on_the_training_digits():
    x = digits._digits().flatten(1)
    code = digits._whitened(x, 20)[:NUM_TRAIN]
    covariance = code.T @ code / NUM_TRAIN
    # eigh is backward stable: relative error eps·λmax/λ20 in the whitened variances.
    values = torch.linalg.svdvals(x[:NUM_TRAIN] - x[:NUM_TRAIN].mean(0)).square()
    atol = 64 * torch.finfo(x.dtype).eps * (values[0] / values[19]).item()
    assert_close(covariance, torch.eye(20, dtype=x.dtype), rtol=0, atol=atol)


def test_pictures_lie_between_minus_one_and_one():
    task = Decode(16, 32, 3)
    codes, pictures = task.held_out()
    assert codes.shape == (297, 16)
    assert pictures.shape == (297, 3, 32, 32)
    eps = torch.finfo(torch.float32).eps
    assert pictures.min() >= -1 - 8 * eps
    assert pictures.max() <= 1 + 8 * eps
    assert not torch.equal(pictures[:, 0], pictures[:, 1])


# Training -----------------------------------------------------------------------------------------


@one_of_each
def test_training_is_deterministic(name):
    spec = replace(MODELS[name], steps=4)
    first = weights(fit(spec))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        before = torch.get_rng_state()
        again = weights(fit(spec))
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(first, again)
    assert not torch.equal(first, weights(fit(replace(spec, seed=spec.seed + 10))))


def test_training_lowers_the_loss():
    spec = replace(MODELS[QUICK], steps=100)
    report = training._loss(training._initial(spec), spec.task)
    assert training._loss(fit(spec), spec.task) < report


def test_training_again_writes_the_same_bytes(folder):
    reports = [training.train(QUICK, directory=folder / str(i)) for i in range(2)]
    assert reports[0].sha256 == reports[1].sha256
    for name in (f"{QUICK}.safetensors", "manifest.json"):
        assert (folder / "0" / name).read_bytes() == (folder / "1" / name).read_bytes()


def test_a_trained_network_is_loaded(folder):
    training.train(QUICK, directory=folder)
    assert torch.equal(weights(build(QUICK, "digits", torch.float32)), weights(fit(MODELS[QUICK])))
    assert sorted(os.listdir(folder)) == ["bottleneck-d2.safetensors", "manifest.json"]


def test_train_all_reports_progress_and_checks_names_first(folder):
    seen = []
    reports = training.train_all([QUICK], seen.append, directory=folder / "new")
    assert [report.name for report in reports] == [QUICK]
    assert seen == reports
    with pytest.raises(KeyError, match="resnet-50"):
        training.train_all([QUICK, "resnet-50"], directory=folder / "none")
    assert not (folder / "none").exists()


def test_manifest_keeps_the_other_networks(folder):
    (folder / "manifest.json").write_text('{"other": {"sha256": "0"}}')
    training.train(QUICK, directory=folder)
    assert list(json.loads((folder / "manifest.json").read_text())) == [QUICK, "other"]


# Damage -------------------------------------------------------------------------------------------


def refused(match: str):
    return pytest.raises(WeightsError, match=f"{match}.*{COMMAND}")


def test_missing_entry(folder):
    with refused("no entry"):
        build(QUICK, "digits")


def test_missing_file(folder):
    training.train(QUICK, directory=folder)
    (folder / f"{QUICK}.safetensors").unlink()
    with refused("bottleneck-d2.safetensors is missing"):
        build(QUICK, "digits")


@pytest.mark.parametrize("position", [0, 1000, -1])
def test_one_flipped_bit(folder, position):
    training.train(QUICK, directory=folder)
    path = folder / f"{QUICK}.safetensors"
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    with refused("requires SHA-256"):
        build(QUICK, "digits")


def test_weights_of_other_settings(folder, monkeypatch):
    training.train(QUICK, directory=folder)
    monkeypatch.setitem(MODELS, QUICK, replace(MODELS[QUICK], learning_rate=0.5))
    with refused("other than in MODELS"):
        build(QUICK, "digits")


def test_unreadable_manifest(folder):
    (folder / "manifest.json").write_text("{")
    with refused("not valid JSON"):
        build(QUICK, "digits")
    with refused("not valid JSON"):
        training.train(QUICK, directory=folder)


def test_interrupted_writing_leaves_the_old_file(folder, monkeypatch):
    training.train(QUICK, directory=folder)
    before = (folder / f"{QUICK}.safetensors").read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setitem(MODELS, QUICK, replace(MODELS[QUICK], seed=7))
    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        training.train(QUICK, directory=folder)
    assert (folder / f"{QUICK}.safetensors").read_bytes() == before
