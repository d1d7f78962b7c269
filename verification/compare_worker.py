"""Run the estimators of one tree on given matrices and probes: a process of `compare`.

`import specbp` is whatever PYTHONPATH says, so this file relies on nothing but the table of
methods (name, estimate, on, estimand, config, needs) and the fields of `Estimate`.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

Result = dict[str, np.ndarray]
ENOUGH = 0.1  # seconds: a longer call is timed once
KNOWN = ("interval", "lower", "upper")


class UsageError(Exception):
    """What was asked for does not exist."""


def main(arguments: list[str]) -> int:
    """Arguments: files of the request (JSON), of the inputs and of the results (npz)."""
    request = json.loads(Path(arguments[0]).read_text())
    torch.set_num_threads(1)
    try:
        rows = list(methods(request))
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    results: Result = {}
    described = {row.name: describe(row) for row in rows}
    with np.load(arguments[1]) as inputs:
        for i, cell in enumerate(request["cells"]):
            print(f"{request['label']}: {cell['id']}", flush=True)
            for row in rows:
                found = evaluate(row, cell, inputs, i, request["repeats"])
                results |= {f"{row.name}/{i}/{key}": value for key, value in found.items()}
    results["methods"] = np.array(json.dumps(described))
    np.savez(arguments[2], **results)  # type: ignore[arg-type]
    return 0


def methods(request: dict[str, Any]) -> Iterator[Any]:
    """The rows of the tree's table, or the one estimator that is named."""
    root, target = request["root"], request["target"]
    try:
        import specbp
        from specbp.methods import METHODS
    except ImportError as error:
        raise UsageError(
            f"{request['label']} has no table specbp.methods.METHODS: {error}."
        ) from None
    if root and not Path(str(specbp.__file__)).resolve().is_relative_to(Path(root).resolve()):
        raise UsageError(f"import specbp found {specbp.__file__}, not the one of {root}.")
    if target is None:
        yield from METHODS.values()
        return
    found = resolve(target)
    if hasattr(found, "estimate"):  # a row of a table
        config = {**found.config, **request["config"]}
        needs, on, estimand = found.needs, found.on, found.estimand
    elif callable(found):
        config = request["config"]
        wanted = parameters(found)
        needs = [key for key in KNOWN if wanted.get(key) is inspect.Parameter.empty]
        on, estimand = request["on"], request["estimand"]
    else:
        raise UsageError(f"{target} is neither a function nor a row of methods, but {found!r}.")
    yield SimpleNamespace(
        name="estimator",
        estimate=getattr(found, "estimate", found),
        on=on,
        estimand=estimand,
        config=config,
        needs=needs,
    )


def resolve(target: str) -> Any:
    """The object at `package.module:name`, `:name.attribute` or `:name[key]`."""
    module, _, path = target.partition(":")
    found: Any
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"No estimator {target}: {error}.") from error
    for attribute, key in re.findall(r"(\w+)|\[(\w+)\]", path):
        try:
            found = found[key] if key else getattr(found, attribute)
        except (AttributeError, KeyError, TypeError) as error:
            message = f"No estimator {target}: {module} has no {path}."
            raise UsageError(message) from error
    return found


def parameters(estimate: Callable[..., Any]) -> dict[str, Any]:
    """Name -> default of every parameter."""
    return {p.name: p.default for p in inspect.signature(estimate).parameters.values()}


def describe(row: Any) -> dict[str, Any]:
    """What the parent has to know of a row; a baseline method is not judged."""
    claims = getattr(row, "claims", None)
    return {
        "on": row.on,
        "estimand": row.estimand,
        "config": {
            k: v if isinstance(v, int | float | str) else repr(v) for k, v in row.config.items()
        },
        "gated": bool(getattr(claims, "gated", True)),
        "calibrated": bool(getattr(claims, "calibrated", True)),
    }


def evaluate(row: Any, cell: dict[str, Any], inputs: Any, i: int, repeats: int) -> Result:
    """Values (R,), or (1,) without probes, and what belongs to them; or the error raised."""
    dtype = getattr(torch, cell["dtype"])
    # Cloned: memory of torch is aligned, and rounding depends on alignment.
    operator = torch.from_numpy(inputs[f"{i}/{'J' if row.on == 'J' else 'A'}"]).to(dtype).clone()
    probes = torch.from_numpy(inputs[f"{i}/probes"]).to(dtype)
    probes = probes.mT.contiguous().mT
    n, a, b = probes.shape[-2], cell["lower"], cell["upper"]
    known = {"interval": (a, b), "lower": a, "upper": b}
    config = {
        k: min(v, n) if k in ("num_steps", "power_steps") else v for k, v in row.config.items()
    }
    config |= {key: known[key] for key in row.needs}

    def call(X: torch.Tensor) -> Any:
        given = (X,) if takes_probes(row.estimate) else ()
        return row.estimate(operator, *given, **config)

    try:
        seconds: list[float] = []
        while len(seconds) < repeats and sum(seconds) < ENOUGH:
            begin = time.perf_counter()
            found = call(probes)
            seconds.append(time.perf_counter() - begin)
        if takes_probes(row.estimate) and tuple(found.value.shape) != tuple(probes.shape[:1]):
            return {**joined([fields(call(X)) for X in probes]), "seconds": np.array(min(seconds))}
        return {**fields(found), "seconds": np.array(min(seconds))}
    except Exception as error:
        return {"error": np.array(f"{type(error).__name__}: {error}")}


def takes_probes(estimate: Callable[..., Any]) -> bool:
    """Methods without randomness have one positional argument that must be given, the operator."""
    found = inspect.signature(estimate).parameters.values()
    required = [p for p in found if p.default is p.empty and p.kind in (0, 1)]
    return len(required) > 1


def fields(estimate: Any) -> Result:
    value = np.atleast_1d(estimate.value.detach().double().numpy())
    return {
        "value": value,
        "standard_error": np.broadcast_to(
            estimate.standard_error.detach().double().numpy(), value.shape
        ),
        "ok": np.broadcast_to(estimate.ok.numpy(), value.shape),
        "samples": estimate.samples.detach().double().numpy(),
        "matvecs": np.array(float(estimate.num_matvecs)),
    }


def joined(parts: list[Result]) -> Result:
    """One replicate after the other, of an estimator that does not broadcast."""
    together = {key: np.stack([part[key] for part in parts]) for key in parts[0]}
    return {
        **{key: together[key].reshape(len(parts)) for key in ("value", "standard_error", "ok")},
        "samples": together["samples"],
        "matvecs": together["matvecs"].mean(),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
