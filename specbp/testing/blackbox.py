"""Estimators as black boxes: one call whatever the signature, one outcome whatever is returned.

A foreign estimator raises, returns NaN, a tensor of one entry, a pair, or an object of its own. All
of these become an `Outcome`: a finite number, or the reason why there is none. A failure is data
for a check; it is never left out of a mean.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from specbp.estimate import Status
from specbp.probes import generator_for

_VALUE = ("value", "estimate", "mean")
_ERROR = ("standard_error", "stderr", "std_err", "std_error", "sem", "se")


@dataclass(frozen=True)
class Outcome:
    """What one call gave.

    Attributes:
        value: Finite value, or None.
        standard_error: The error bar that came with it, or None; NaN counts as none.
        reason: Why there is no value, or None where there is one.
    """

    value: float | None
    standard_error: float | None = None
    reason: str | None = None


def call(
    estimator: Callable[..., Any], A: Any, generator: torch.Generator | None = None
) -> Outcome:
    r"""Call `estimator(A)`, with the generator if its signature has room for one.

    .. math:: A \mapsto (T, \mathrm{se}) \text{ or the reason of a failure}

    Understood are numbers, arrays and tensors of one entry, pairs (value, standard error), and
    objects with `value` or `estimate` and `standard_error`, `stderr` or `sem`. Everything else, an
    exception, NaN and inf included, is an outcome with a reason.

    Args:
        estimator: A generator goes to its argument `generator`, else to a second required one.
        A: What it is applied to, in the dtype that it needs.
        generator: Source of its randomness.

    Source: this package.

    Example:
        >>> call(lambda A: (3.0, 0.5), None)
        Outcome(value=3.0, standard_error=0.5, reason=None)
        >>> call(lambda A: float("nan"), None).reason
        'the value is nan'
        >>> call(lambda A: 1 / 0, None).reason
        'raised ZeroDivisionError: division by zero'
    """
    try:
        return as_outcome(invoke(estimator, A, generator))
    except Exception as error:
        return Outcome(None, reason=f"raised {type(error).__name__}: {error}")


def invoke(estimator: Callable[..., Any], A: Any, generator: torch.Generator | None) -> Any:
    """What `estimator(A)` returns, called with the generator if its signature has room for one."""
    if generator is None or not takes_generator(estimator):
        return estimator(A)
    if "generator" in _parameters(estimator):
        return estimator(A, generator=generator)
    return estimator(A, generator)


def call_seeded(estimator: Callable[..., Any], A: Any, key: Sequence[object]) -> Outcome:
    """Call with the randomness of a key: a generator where one is taken, global ones elsewhere.

    Args:
        estimator: `estimator(A)` or `estimator(A, generator)`.
        A: What it is applied to.
        key: Equal keys give equal randomness, as in `specbp.generator_for`.

    Source: this package.

    Example:
        >>> import torch
        >>> draws = lambda A: torch.bernoulli(torch.tensor(0.5).expand(60)).mean()
        >>> call_seeded(draws, None, ("a",)) == call_seeded(draws, None, ("a",))
        True
    """
    if takes_generator(estimator):
        return call(estimator, A, generator_for(*key))
    with isolated_rng(seed_of(key)):
        return call(estimator, A)


def takes_generator(estimator: Callable[..., Any]) -> bool:
    """Whether the signature has an argument `generator` or a second required one.

    Source: this package.

    Example:
        >>> takes_generator(lambda A: 0), takes_generator(lambda A, g: 0)
        (False, True)
    """
    parameters = _parameters(estimator)
    required = [
        p
        for p in parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    return "generator" in parameters or len(required) >= 2


def seed_of(key: Sequence[object]) -> int:
    """32-bit seed of a key, for libraries that are seeded with a number."""
    digest = hashlib.sha256(repr(tuple(key)).encode()).digest()
    return int.from_bytes(digest[:4], "big")


@contextmanager
def isolated_rng(seed: int) -> Iterator[None]:
    """Seed the global generators of torch, numpy and python inside, restore them exactly outside.

    This package draws from explicit generators only. Foreign estimators draw from global state,
    and can be reproduced in no other way; inside this block, and nowhere else, it is theirs. On
    leaving, all three generators (and those of CUDA, where it is in use) continue as if nothing had
    happened, also after an exception. Not for several threads: global state is one.

    Args:
        seed: Non-negative, below 2³².

    Source: this package.

    Example:
        >>> import torch
        >>> with isolated_rng(3):
        ...     a = torch.randn(2)
        >>> with isolated_rng(3):
        ...     b = torch.randn(2)
        >>> torch.equal(a, b)
        True
    """
    cuda = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    # The singleton behind numpy.random's functions; its own state holds a cached normal deviate,
    # which the state of its bit generator does not.
    legacy = np.random.mtrand._rand
    bits, numpy_state = np.random.mtrand.get_bit_generator(), legacy.get_state(legacy=False)
    python_state = random.getstate()
    with torch.random.fork_rng(devices=list(cuda)):
        torch.default_generator.manual_seed(seed)
        for i in cuda:
            torch.cuda.default_generators[i].manual_seed(seed)
        np.random.mtrand.set_bit_generator(np.random.MT19937(seed))
        random.setstate(random.Random(seed).getstate())
        try:
            yield
        finally:
            np.random.mtrand.set_bit_generator(bits)
            legacy.set_state(numpy_state)
            random.setstate(python_state)


def global_state() -> tuple[bytes, str, str]:
    """The states of the global generators of torch (CPU), numpy and python, to be compared."""
    numpy_state = np.random.mtrand._rand.get_state(legacy=True)
    return (
        bytes(torch.random.get_rng_state().numpy()),
        repr([v.tolist() if isinstance(v, np.ndarray) else v for v in numpy_state]),
        repr(random.getstate()),
    )


def as_outcome(result: Any) -> Outcome:
    """What a call returned, as an `Outcome`; see `call`."""
    if isinstance(result, tuple | list) and 1 <= len(result) <= 2:
        value, error = result[0], result[1] if len(result) == 2 else None
    else:
        value = next((getattr(result, n) for n in _VALUE if _has_number(result, n)), result)
        error = next((getattr(result, n) for n in _ERROR if _has_number(result, n)), None)
    number, reason = _number(value)
    if number is None:
        return Outcome(None, reason=f"{reason}{_flags(result)}")
    bar, _ = _number(error)
    return Outcome(number, bar)


def _number(value: Any) -> tuple[float | None, str | None]:
    """A finite real number, or what is there instead."""
    if value is None or isinstance(value, str | bytes | bool | dict | set):
        return None, f"the result is of type {type(value).__name__}, a real number is required"
    value = value.detach() if isinstance(value, torch.Tensor) else value
    shape = tuple(value.shape) if isinstance(value, torch.Tensor) else np.shape(value)
    if math.prod(shape) != 1:
        return None, f"the result has shape {shape}, one number is required"
    try:
        number = float(value.reshape(()) if hasattr(value, "reshape") else value)
    except (TypeError, ValueError, RuntimeError) as error:
        return None, f"the result of type {type(value).__name__} is not a real number ({error})"
    return (number, None) if math.isfinite(number) else (None, f"the value is {number}")


def _has_number(result: Any, name: str) -> bool:
    # Arrays and tensors have methods of these names.
    return hasattr(result, name) and not callable(getattr(result, name))


def _flags(result: Any) -> str:
    status = getattr(result, "status", None)
    if not isinstance(status, torch.Tensor) or status.numel() != 1:
        return ""
    flags = Status(int(status))
    return f" ({flags!r}: {flags.remedy})"


def _parameters(estimator: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(estimator).parameters)
    except (TypeError, ValueError):  # some built-in functions have no signature
        return {}
