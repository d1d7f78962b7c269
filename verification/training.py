"""Networks with weights from short, deterministic training on scikit-learn's bundled digits.

Every network of `MODELS` exists in two states, ``"init"`` (drawn from its seed) and ``"digits"``
(trained). Maps from R^n to R^n learn to denoise, generators to decode. The weights are committed as
``weights/<name>.safetensors`` and described in ``weights/manifest.json``; loading verifies the
SHA-256 of the file.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors
import safetensors.torch
import sklearn
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from specbp.models import BottleneckResNet, ConvWideResNet, DCGANGenerator
from verification.digits import Decode, Denoise, Task

WEIGHTS = Path(__file__).parent / "weights"
COMMAND = "python -m verification train"

State = Literal["init", "digits"]


class WeightsError(RuntimeError):
    """A weight file is missing, corrupt, or not the one the registry describes."""


# Registry -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelSpec:
    """One network: how it is built, what it is trained on, and how.

    Attributes:
        builder: Class of the network, called as ``builder(**args, generator=...)``.
        args: Its constructor arguments.
        task: What it is trained on; also gives the points of evaluation.
        seed: seed + 0 draws the initial weights, seed + 1 the batches and the noise.
        steps: Number of Adam steps.
        learning_rate: Of the first step; it falls to zero along half a cosine.
        batch_size: Pairs per step.
    """

    builder: Callable[..., nn.Module]
    args: Mapping[str, int]
    task: Task
    seed: int
    steps: int
    learning_rate: float = 1e-3
    batch_size: int = 64

    @property
    def num_inputs(self) -> int:
        """Elements of one input: the order of JᵀJ, known without computing a point."""
        task = self.task
        return task.latent if isinstance(task, Decode) else math.prod(task.shape)

    def settings(self) -> dict[str, Any]:
        """What determines the weights, as plain JSON values."""
        task = {"kind": type(self.task).__name__, **asdict(self.task)}
        settings = {**vars(self), "builder": self.builder.__name__, "task": task}
        return json.loads(json.dumps(settings))


def _bottleneck(dim: int, hidden: int, side: int, **training: Any) -> ModelSpec:
    task = Denoise((dim,), side)
    return ModelSpec(BottleneckResNet, {"dim": dim, "hidden": hidden}, task, **training)


def _wide_resnet(width: int, side: int, **training: Any) -> ModelSpec:
    task = Denoise((1, side, side), side)
    return ModelSpec(ConvWideResNet, {"channels": 1, "width": width}, task, **training)


def _dcgan(latent: int, size: int, channels: int, **training: Any) -> ModelSpec:
    task = Decode(latent, size, channels)
    args = {**asdict(task), "base_width": 8}
    return ModelSpec(DCGANGenerator, args, task, learning_rate=2e-3, **training)


# A map from R^n to R^n is singular on a surface, and a point may lie close to it. With these seeds
# cond(JᵀJ) stays below 1e8 at the first eight points of every network, in both states.
MODELS: dict[str, ModelSpec] = {
    "bottleneck-d2": ModelSpec(
        BottleneckResNet, {"dim": 2}, Denoise((2,), side=0, dither=0.0), seed=100, steps=2000
    ),
    "bottleneck-d64": _bottleneck(64, 64, 8, seed=200, steps=2000),
    "bottleneck-d256": _bottleneck(256, 64, 16, seed=300, steps=2000),
    "bottleneck-d784": _bottleneck(784, 48, 28, seed=405, steps=3000),
    "wideresnet-1x8x8": _wide_resnet(16, 8, seed=500, steps=800),
    "wideresnet-1x16x16": _wide_resnet(16, 16, seed=607, steps=400),
    "dcgan-z16": _dcgan(16, 32, 1, seed=700, steps=1000),
    "dcgan-z64": _dcgan(64, 32, 1, seed=800, steps=1000),
    "dcgan-z128": _dcgan(128, 64, 3, seed=900, steps=600),
}


def build(name: str, state: State = "init", dtype: torch.dtype = torch.float64) -> nn.Module:
    """Build a network of the registry in evaluation mode, its parameters without gradients.

    Initial and trained weights are float32 numbers, so float32 and float64 give the same network.

    Args:
        name: A key of `MODELS`.
        state: ``"init"`` for the untrained, ``"digits"`` for the trained network.
        dtype: Of the parameters.

    Raises:
        KeyError: If `name` is not in the registry.
        ValueError: If `state` is neither of the two.
        WeightsError: If the weights of the trained network are missing, corrupt or outdated.
    """
    spec = _spec(name)
    if state not in ("init", "digits"):
        msg = f'state must be "init" or "digits", got {state!r}.'
        raise ValueError(msg)
    model = _initial(spec)
    if state == "digits":
        model.load_state_dict(_load(name, WEIGHTS))
    return model.to(dtype).eval().requires_grad_(False)


def points(name: str, batch: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """The first `batch` held-out inputs of a network: (batch, ...), as it takes them.

    A larger batch extends a smaller one.

    Raises:
        KeyError: If `name` is not in the registry.
        ValueError: If `batch` is not between 1 and the number of held-out digits.
    """
    z = _points(_spec(name).task)
    if not 1 <= batch <= len(z):
        msg = f"batch must be between 1 and {len(z)}, got {batch}."
        raise ValueError(msg)
    return z[:batch].to(dtype, copy=True)


def _spec(name: str) -> ModelSpec:
    if name not in MODELS:
        msg = f"Unknown network {name!r}: use one of {', '.join(MODELS)}."
        raise KeyError(msg)
    return MODELS[name]


def _initial(spec: ModelSpec) -> nn.Module:
    return spec.builder(**spec.args, generator=torch.Generator().manual_seed(spec.seed))


@cache
def _points(task: Task) -> Tensor:
    return task.points()


# Training -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainingReport:
    """One training run, as the manifest records it; losses are on the held-out digits.

    Attributes:
        name: Key of the registry.
        sha256: Of the weight file.
        num_parameters: Number of trained numbers.
        initial_loss: Mean squared error of the untrained network.
        final_loss: Mean squared error of the trained network.
        trivial_loss: Mean squared error of a map that needs no training, by the task.
        settings: By `ModelSpec.settings`.
        versions: Of the software, and the kind of processor.
        seconds: Wall time; not in the manifest, which is to be the same from run to run.
    """

    name: str
    sha256: str
    num_parameters: int
    initial_loss: float
    final_loss: float
    trivial_loss: float
    settings: dict[str, Any]
    versions: dict[str, str]
    seconds: float


def fit(spec: ModelSpec) -> nn.Module:
    """Train a network from its seed: on one machine, the same bits in every run."""
    model = _initial(spec)
    optimizer = torch.optim.Adam(model.parameters(), lr=spec.learning_rate)
    generator = torch.Generator().manual_seed(spec.seed + 1)
    with _one_thread():
        batches = spec.task.batches(spec.batch_size, generator)
        for step, (inputs, targets) in zip(range(spec.steps), batches, strict=False):
            for group in optimizer.param_groups:
                group["lr"] = spec.learning_rate * (1 + math.cos(math.pi * step / spec.steps)) / 2
            optimizer.zero_grad()
            F.mse_loss(model(inputs), targets).backward()
            optimizer.step()
    return model


def train(name: str, *, directory: Path = WEIGHTS) -> TrainingReport:
    """Train one network, write its weight file, then its entry in the manifest.

    Both files are written under a temporary name and renamed: none is ever half written.

    Raises:
        KeyError: If `name` is not in the registry.
        WeightsError: If the manifest in `directory` cannot be read.
    """
    spec, started = _spec(name), time.perf_counter()
    _manifest(directory)  # an unreadable one fails here, not after the training
    model = fit(spec)
    content = safetensors.torch.save(model.state_dict())
    report = TrainingReport(
        name=name,
        sha256=hashlib.sha256(content).hexdigest(),
        num_parameters=sum(p.numel() for p in model.parameters()),
        initial_loss=_loss(_initial(spec), spec.task),
        final_loss=_loss(model, spec.task),
        trivial_loss=spec.task.trivial_loss(),
        settings=spec.settings(),
        versions=_versions(),
        seconds=time.perf_counter() - started,
    )
    directory.mkdir(parents=True, exist_ok=True)
    _write(directory / f"{name}.safetensors", content)
    _record(report, directory)
    return report


def train_all(
    names: Iterable[str] | None = None,
    progress: Callable[[TrainingReport], None] | None = None,
    *,
    directory: Path = WEIGHTS,
) -> list[TrainingReport]:
    """Train the named networks (default: all), calling `progress` after each.

    Raises:
        KeyError: If a name is not in the registry; nothing is trained then.
        WeightsError: If the manifest in `directory` cannot be read.
    """
    chosen = list(MODELS if names is None else names)
    for name in chosen:
        _spec(name)
    reports = []
    for name in chosen:
        reports.append(train(name, directory=directory))
        if progress is not None:
            progress(reports[-1])
    return reports


def _loss(model: nn.Module, task: Task) -> float:
    inputs, targets = task.held_out()
    with _one_thread(), torch.no_grad():
        return F.mse_loss(model(inputs.float()).double(), targets).item()


@contextmanager
def _one_thread() -> Iterator[None]:
    # The order of summation, and with it the last bit, depends on the number of threads.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


# Weight files -------------------------------------------------------------------------------------


def _load(name: str, directory: Path) -> dict[str, Tensor]:
    """Weights of a trained network, after comparing its file with the manifest."""
    path, entry = directory / f"{name}.safetensors", _manifest(directory).get(name)
    if entry is None:
        raise _weights_error(name, "the manifest has no entry for it")
    if not path.is_file():
        raise _weights_error(name, f"{path.name} is missing")
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != entry["sha256"]:
        reason = f"the manifest requires SHA-256 {entry['sha256']}, {path.name} has {digest}"
        raise _weights_error(name, reason)
    if entry["settings"] != _spec(name).settings():
        raise _weights_error(name, f"{path.name} was trained with settings other than in MODELS")
    return safetensors.torch.load(content)


def _weights_error(name: str, reason: str) -> WeightsError:
    remedy = f"restore the file from version control, or train again with `{COMMAND}`"
    return WeightsError(f"No usable weights for {name!r}: {reason}; {remedy}.")


def _manifest(directory: Path) -> dict[str, Any]:
    path = directory / "manifest.json"
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        remedy = f"restore it from version control, or delete it and run `{COMMAND}`"
        msg = f"{path.name} is not valid JSON ({error}); {remedy}."
        raise WeightsError(msg) from error


def _record(report: TrainingReport, directory: Path) -> None:
    entry = {k: v for k, v in asdict(report).items() if k not in ("name", "seconds")}
    manifest = dict(sorted({**_manifest(directory), report.name: entry}.items()))
    _write(directory / "manifest.json", (json.dumps(manifest, indent=1) + "\n").encode())


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scikit-learn": sklearn.__version__,
        "safetensors": safetensors.__version__,
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    }
