"""Memory and time of a gradient: value and backward of one batch of probes at one point."""

from __future__ import annotations

import statistics
import time
import weakref
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from specbp import Estimate, generator_for, rademacher
from verification.experiments.gradients_cases import jacobian, network
from verification.experiments.gradients_estimators import EXACT, Estimator, Interval
from verification.store import Record
from verification.training import State

DTYPE = torch.float32


class SavedTensors:
    """Bytes of the tensors that autograd saves, alive at once: those packed and not yet released.

    A storage counts once, however many tensors share it, until the last of them is released.

    Args:
        ignored: Tensors whose storages do not count: they exist anyway.

    Example:
        >>> x = torch.ones(1000, requires_grad=True)
        >>> with SavedTensors([x]) as saved:
        ...     y = x.exp().exp()
        ...     del y
        >>> saved.peak, saved.alive
        (8000, 0)
    """

    def __init__(self, ignored: Iterable[Tensor] = ()):
        hooks = torch.autograd.graph.saved_tensors_hooks
        self._hooks = hooks(self._pack, lambda saved: saved.tensor)
        self.alive = self.peak = 0
        self._holders: Counter[int] = Counter()
        self._ignored = {t.untyped_storage().data_ptr() for t in ignored}

    def __enter__(self) -> SavedTensors:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)

    def _pack(self, tensor: Tensor) -> _Saved:
        storage = tensor.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        # Detached: with its graph, a result saved by its own node would keep that node alive.
        saved = _Saved(tensor.detach())
        if address not in self._ignored:
            self._holders[address] += 1
            if self._holders[address] == 1:
                self.alive += size
                self.peak = max(self.peak, self.alive)
            weakref.finalize(saved, self._release, address, size)
        return saved

    def _release(self, address: int, size: int) -> None:
        self._holders[address] -= 1
        if not self._holders[address]:
            self.alive -= size


@dataclass(eq=False)
class _Saved:
    tensor: Tensor


@dataclass(frozen=True, eq=False)
class Task:
    """One batch of probes at one point of a network, float32."""

    name: str
    f: nn.Module
    z: Tensor
    interval: Interval
    probes: Tensor

    @classmethod
    def build(cls, name: str, state: State, m: int) -> Task:
        """m probes at the first held-out point of a network."""
        f, z = network(name, state, DTYPE)
        sigma = torch.linalg.svdvals(jacobian(f, z).dense()[0].double())
        ends = float(sigma[-1] ** 2), float(sigma[0] ** 2)
        draws = generator_for("gradients", name, "cost", m)
        probes = rademacher(len(sigma), m, generator=draws, batch_shape=(1,), dtype=DTYPE)
        return cls(f"{name} {state}", f, z, ends, probes)

    def run(self, estimator: Estimator, steps: int) -> None:
        """The gradient in all parameters, from the construction of J on."""
        self.backward(self.estimate(estimator, steps))

    def estimate(self, estimator: Estimator, steps: int) -> Estimate:
        """The estimate, from the construction of J on."""
        J, draws = jacobian(self.f, self.z), generator_for("cost")
        return estimator.estimate(J, self.probes, steps, self.interval, draws)

    def backward(self, estimate: Estimate) -> None:
        """The gradient of an estimate in all parameters."""
        self.f.zero_grad()
        estimate.value.sum().backward()


def memory(task: Task, estimator: Estimator, steps: int) -> Record:
    """Peak bytes of saved tensors but parameters, forward and backward, and of vectors held."""
    with SavedTensors(task.f.parameters()) as saved:
        estimate = task.estimate(estimator, steps)
        held = vectors_held(estimate.value)
        task.backward(estimate)
    return _record("memory", task, estimator, steps) | {"bytes": saved.peak, "held": held}


def vectors_held(value: Tensor) -> int:
    """Bytes of the tensors that an estimate keeps until `backward` besides those autograd saves.

    Those within the function that will compute its sensitivity: bases, vectors of a recurrence,
    probes. Operators do not count: what they keep serves the value as well.

    Args:
        value: With a graph.
    """
    found: dict[int, int] = {}
    nodes, seen = [value.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            found |= _storages(getattr(node, "sensitivity", None))
            nodes += [parent for parent, _ in node.next_functions]
    return sum(found.values())


def _storages(held: Any) -> dict[int, int]:
    """Bytes by address of the tensors in nested sequences and closures."""
    if isinstance(held, Tensor):
        storage = held.untyped_storage()
        return {storage.data_ptr(): storage.nbytes()}
    if isinstance(held, FunctionType):
        held = [cell.cell_contents for cell in held.__closure__ or ()]
    found: dict[int, int] = {}
    if isinstance(held, list | tuple):
        for item in held:
            found |= _storages(item)
    return found


def reach(
    task: Task, estimator: Estimator, steps: int, noise: tuple[float, float], repeats: int
) -> Record:
    """Time with as many probes as `task` has, beside that of the exact gradient.

    Args:
        task: With the probes that the noise asks for.
        estimator: And its steps.
        steps: k.
        noise: Relative std and bias of its gradient for one probe.
        repeats: Of each time.
    """
    own, exact = times(task, [estimator], [steps], repeats)
    std, bias = noise
    known = {"kind": "reach", "std": std, "bias": bias, "exact": exact["seconds"]}
    return own | known | {"products": task.probes.shape[-1] * steps}


def times(
    task: Task, estimators: Sequence[Estimator], steps: Sequence[int], repeats: int
) -> list[Record]:
    """Median processor time of each estimator for each number of steps, and of the exact gradient.

    They take turns: what disturbs the machine disturbs all of them.
    """
    jobs = [(e, k) for k in steps for e in estimators] + [(EXACT, 0)]
    for estimator, k in jobs:  # what is loaded at the first call
        task.run(estimator, min(k, 2))
    taken: list[list[float]] = [[] for _ in jobs]
    for _ in range(repeats):
        for seconds, (estimator, k) in zip(taken, jobs, strict=True):
            start = time.process_time()
            task.run(estimator, k)
            seconds.append(time.process_time() - start)
    return [
        _record("time", task, e, k) | {"seconds": statistics.median(s)}
        for s, (e, k) in zip(taken, jobs, strict=True)
    ]


def _record(kind: str, task: Task, estimator: Estimator, steps: int) -> Record:
    n, m = task.probes.shape[-2:]
    return {
        "kind": kind,
        "case": task.name,
        "n": n,
        "estimator": estimator.name,
        "probes": m,
        "steps": steps,
    }
