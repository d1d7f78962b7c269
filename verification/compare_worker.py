"""Run the estimators of one tree on given matrices and probes: a process of `compare`.

`import specbp` is whatever PYTHONPATH says, so this file relies on nothing but the table of
methods (name, estimate, on, estimand, config, needs) and the fields of `Estimate`. Functions of
others may return a number, a pair (value, standard error), or an object with fields of those names.
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
VALUE = ("value", "estimate", "mean")
ERROR = ("standard_error", "stderr", "std_err", "std_error", "sem", "se")


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
    save(Path(arguments[2]), results)
    return 0


def save(path: Path, results: Result) -> None:
    """Write the whole file or none: its being there says that this process came to its end."""
    temporary = path.with_name("unfinished.npz")
    np.savez(temporary, **results)  # type: ignore[arg-type]
    temporary.replace(path)


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
        foreign=True,
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
        return row.estimate(operator, *given, **arguments(row, X, config))

    try:
        return called(row, call, probes, repeats)
    except (Exception, SystemExit) as error:
        return {"error": np.array(f"{type(error).__name__}: {error}")}


def arguments(row: Any, X: torch.Tensor, config: dict[str, Any]) -> dict[str, Any]:
    """Arguments for as many probes, and degrees where the row wants them, the same on both sides.

    Older trees know of neither.
    """
    n, m = X.shape[-2:]
    shaped = getattr(row, "shaped", None)
    config = config if shaped is None else shaped(n, m, config)
    if getattr(row, "survival", None) is None:
        return config
    generator = torch.Generator().manual_seed(0)
    return {**config, "degrees": config["law"].draw(X.mT.shape[:-1], generator=generator)}


def called(row: Any, call: Callable[[torch.Tensor], Any], X: torch.Tensor, repeats: int) -> Result:
    """All replicates in one block where the estimate allows, else one after the other."""
    seconds: list[float] = []
    try:
        while len(seconds) < repeats and sum(seconds) < ENOUGH:
            begin = time.perf_counter()
            found = call(X)
            seconds.append(time.perf_counter() - begin)
        if not takes_probes(row.estimate):
            return {**fields(found, ()), "seconds": np.array(min(seconds))}
        if shape_of(found) == tuple(X.shape[:1]):
            return {**fields(found, X.shape[:1]), "seconds": np.array(min(seconds))}
    except Exception:
        # The rows of the table promise to broadcast; other functions may know one block only.
        if not (getattr(row, "foreign", False) and takes_probes(row.estimate)):
            raise
    begin = time.perf_counter()
    together = joined([fields(call(x), ()) for x in X])
    seconds.append(time.perf_counter() - begin)
    return {**together, "seconds": np.array(min(seconds))}


def takes_probes(estimate: Callable[..., Any]) -> bool:
    """Methods without randomness have one positional argument that must be given, the operator."""
    found = inspect.signature(estimate).parameters.values()
    required = [p for p in found if p.default is p.empty and p.kind in (0, 1)]
    return len(required) > 1


def fields(estimate: Any, shape: tuple[int, ...]) -> Result:
    """Value (R,), with shape () as (1,), and all that is known besides."""
    value, bar = parts(estimate)
    value = reals(value)
    if value.size != 1 and value.shape != tuple(shape):
        raise TypeError(f"the result has shape {value.shape}, one number is required")
    value = value.reshape(-1)
    ok = getattr(estimate, "ok", None)
    samples = getattr(estimate, "samples", None)
    bars = np.full(1, np.nan) if bar is None else reals(bar)
    return {
        "value": value,
        "standard_error": np.broadcast_to(bars.reshape(-1), value.shape),
        "ok": np.isfinite(value) if ok is None else np.broadcast_to(np.asarray(ok), value.shape),
        "samples": value[:, None] if samples is None else reals(samples),
        "matvecs": np.array(float(getattr(estimate, "num_matvecs", np.nan))),
    }


def parts(estimate: Any) -> tuple[Any, Any]:
    """Value and standard error, None without, of a number, a pair, or an object with fields."""
    value, error = (
        next((getattr(estimate, n) for n in names if is_field(estimate, n)), None)
        for names in (VALUE, ERROR)
    )
    if value is not None:
        return value, error
    if isinstance(estimate, tuple | list) and 1 <= len(estimate) <= 2:
        return estimate[0], estimate[1] if len(estimate) == 2 else None
    return estimate, None


def is_field(found: Any, name: str) -> bool:
    """Arrays and tensors have methods of these names."""
    return hasattr(found, name) and not callable(getattr(found, name))


def shape_of(estimate: Any) -> tuple[int, ...]:
    """The shape of its value."""
    return reals(parts(estimate)[0]).shape


def reals(found: Any) -> np.ndarray:
    """Real numbers as float64.

    Raises:
        TypeError: If they are none.
    """
    if isinstance(found, torch.Tensor):
        found = found.detach().cpu().numpy()
    array = np.asarray(found)
    if array.dtype == object and array.ndim == 0 and hasattr(found, "__float__"):
        array = np.asarray(float(found))
    if array.dtype.kind not in "iuf":
        raise TypeError(
            f"the result is of type {type(found).__name__} ({array.dtype}), "
            "real numbers are required"
        )
    return array.astype(np.float64)


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
