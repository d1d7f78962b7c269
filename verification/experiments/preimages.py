"""How many preimages has a point of a generator, and how wrong is the formula that takes one?

Runs `preimages_study` on maps with a known answer, on bottleneck residual networks as initialised
and with larger weights, and on the checkpoints of a folder; writes results.json, figures and a
README.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from specbp import generator_for
from specbp.models import BottleneckResNet
from verification.experiments import outputs, preimages_report
from verification.experiments.grid import midpoints
from verification.experiments.newton import value_and_jacobian
from verification.experiments.preimages_maps import KNOWN, KnownMap
from verification.experiments.preimages_study import (
    Cover,
    central_box,
    errors,
    integrates_to_one,
    log_densities,
    log_prior,
    mass_of_inverse,
    study,
)
from verification.experiments.preimages_verdict import verdict
from verification.provenance import ROOT
from verification.store import Record

__all__ = ["Cover", "errors", "integrates_to_one", "log_densities", "mass_of_inverse", "study"]

SCALES = (1.0, 1.2, 1.4)  # factors on the parameters of untrained networks
SEEDS = 4
SAMPLES = 4000
PIXELS = 300
KNOWN_GROUP, CHECKPOINT_GROUP = "known", "checkpoint"
Subject = tuple[str, str, BottleneckResNet | KnownMap]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m verification.experiments.preimages`."""
    out = ROOT / "reports" / "experiments" / "preimages"
    parser.add_argument("--out", type=Path, default=out, help="folder of the results")
    parser.add_argument("--quick", action="store_true", help="few samples, one seed")
    parser.add_argument(
        "--checkpoints",
        type=Path,
        help="folder of state_dicts (*.pt) of BottleneckResNet(dim=2), added in order of name",
    )


def main(options: argparse.Namespace) -> int:
    """Run, write, print; exit status 1 if a check or an integral contradicts the preimages."""
    torch.set_num_threads(1)
    began = time.process_time()
    samples, seeds = (400, 1) if options.quick else (SAMPLES, SEEDS)
    subjects = [*_known(), *_untrained(seeds), *_checkpoints(options.checkpoints)]
    records, drawn = [], []
    for name, group, f in tqdm(subjects, unit="map", disable=None):
        cover = _cover(f)
        records.append(measured(name, group, cover, samples, quick=options.quick))
        if isinstance(f, KnownMap):
            records[-1] |= against_known(f, cover, _draws(name, samples))
        drawn.append((name, group, errors(cover, _draws(name, samples))))
    networks = {name: f for name, group, f in subjects if group != KNOWN_GROUP}
    worst, judged = _most_folded(records), verdict(records)
    pixels = 80 if options.quick else PIXELS
    contents: dict[str, str | bytes] = {
        "map.png": map_figure(worst, _cover(networks[worst]), pixels),
        "errors.png": preimages_report.error_figure(drawn),
    }
    seconds = time.process_time() - began
    contents["README.md"] = preimages_report.page(
        records, judged, worst, _command(options), seconds
    )
    made = {"samples": samples, "cpu_seconds": seconds, "verdict": judged}
    outputs.save(options.out, records, contents, **made)
    tqdm.write(str(contents["README.md"]))
    return int(not judged["passed"])


def _command(options: argparse.Namespace) -> str:
    """What to type for the same page."""
    folder = options.checkpoints
    if folder is not None and folder.is_absolute() and folder.is_relative_to(ROOT):
        folder = folder.relative_to(ROOT)
    chosen = [] if folder is None else ["--checkpoints", folder.as_posix()]
    return " ".join([preimages_report.COMMAND, *(["--quick"] if options.quick else []), *chosen])


def measured(name: str, group: str, cover: Cover, samples: int, *, quick: bool = False) -> Record:
    """All that is measured of one map."""
    z = _draws(name, samples)
    record = {"name": name, "group": group, **study(cover, z, newton=20 if quick else 60)}
    if group in (KNOWN_GROUP, CHECKPOINT_GROUP) or name.endswith("seed 0"):
        record |= integrates_to_one(cover, z, cells=40 if quick else 150)
        record |= mass_of_inverse(cover, z, cells=50 if quick else 150)
    return record


def map_figure(name: str, cover: Cover, pixels: int) -> bytes:
    """Number of preimages and both densities over the central part of x."""
    with torch.no_grad():
        box = central_box(cover.f(_draws("figure", SAMPLES)))
    points = midpoints(box, (pixels, pixels)).flatten(0, 1)
    every, greatest, count = (v.view(pixels, pixels) for v in log_densities(cover, points))
    return preimages_report.map_figure(name, box, count, greatest, every)


def against_known(known: KnownMap, cover: Cover, z: Tensor) -> Record:
    """Share of x = f(z) with the right number of preimages, and the largest error of log p."""
    with torch.no_grad():
        x = cover.f(z.double())
    every = known.preimages(x)
    every = torch.where((every.abs() <= cover.radius).all(-1, keepdim=True), every, torch.nan)
    there = every.isfinite().all(-1)
    terms = torch.full(there.shape, -torch.inf, dtype=torch.float64)
    J = value_and_jacobian(cover.f, every[there])[1]
    terms[there] = log_prior(every[there]) - torch.linalg.det(J).abs().log()
    log_p, _, count = log_densities(cover, x)
    return {
        "formula": known.formula.replace("|", "\\|"),
        "known_count": float((count == there.sum(1)).double().mean()),
        "known_log_p": float((log_p - terms.logsumexp(1)).abs().max()),
    }


def _known() -> Iterator[Subject]:
    for name, known in KNOWN.items():
        yield name, KNOWN_GROUP, known


def _untrained(seeds: int) -> Iterator[Subject]:
    for scale in SCALES:
        for seed in range(seeds):
            f = BottleneckResNet(generator=generator_for("preimages", "network", seed))
            with torch.no_grad():
                for parameter in f.parameters():
                    parameter.mul_(scale)
            yield f"scale {scale:g}, seed {seed}", f"scale {scale:g}", f


def _checkpoints(folder: Path | None) -> Iterator[Subject]:
    if folder is None:
        return
    files = sorted(folder.glob("*.pt"))
    if not files:
        msg = f"--checkpoints needs a folder with state_dicts *.pt; {folder} has none."
        raise SystemExit(msg)
    for file in files:
        f = BottleneckResNet(generator=generator_for("checkpoint"))
        f.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        yield file.stem, CHECKPOINT_GROUP, f


def _draws(name: str, samples: int) -> Tensor:
    generator = generator_for("preimages", "draws", name)
    return torch.randn(samples, 2, generator=generator, dtype=torch.float64)


def _most_folded(records: list[Record]) -> str:
    networks = [r for r in records if r["group"] != KNOWN_GROUP]
    return str(max(networks, key=lambda r: r["error_mean"])["name"])


def _cover(f: BottleneckResNet | KnownMap) -> Cover:
    return Cover(f.f if isinstance(f, KnownMap) else f)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    raise SystemExit(main(parser.parse_args()))
