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
import re
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
_FORMS = "; accepted are a number, (value, standard error), and an object with .value"


@dataclass(frozen=True)
class Outcome:
    """What one call gave.

    Attributes:
        value: Finite value, or None.
        standard_error: The error bar that came with it, finite and not negative, or None; None and
            NaN claim none, anything else is a failure of the call.
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

    Understood are real numbers, arrays and tensors of one entry, pairs (value, standard error), and
    objects with `value` or `estimate` and `standard_error`, `stderr` or `sem`. Everything else, an
    exception, NaN and inf included, is an outcome with a reason; so is an error bar that is neither
    None, nor NaN, nor a finite number ≥ 0.

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
        >>> call(lambda A: (3.0, -0.5), None).reason
        'the error bar is -0.5'
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
    name = next((n for n in _VALUE if _has_number(result, n)), None)
    if name is None and isinstance(result, tuple | list):
        if not 1 <= len(result) <= 2:
            what = f"the result is a {type(result).__name__} of {len(result)}"
            return Outcome(None, reason=what + _FORMS)
        value, error = result[0], result[1] if len(result) == 2 else None
    else:
        value = result if name is None else getattr(result, name)
        error = next((getattr(result, n) for n in _ERROR if _has_number(result, n)), None)
    number, reason = _number(value, "result")
    if number is not None and not math.isfinite(number):
        reason = f"the value is {number}"
    if number is not None and reason is None:
        bar, reason = _error_bar(error)
        if reason is None:
            return Outcome(number, bar)
    return Outcome(None, reason=f"{reason}{_flags(result)}")


def _error_bar(error: Any) -> tuple[float | None, str | None]:
    """A finite number ≥ 0, None where none is claimed, or what is there instead."""
    if error is None:
        return None, None
    bar, reason = _number(error, "error bar")
    if bar is None or math.isnan(bar):
        return None, reason
    usable = bar >= 0 and math.isfinite(bar)
    return (bar, None) if usable else (None, f"the error bar is {bar}")


def _number(value: Any, what: str) -> tuple[float | None, str | None]:
    """A real number, NaN and inf included, or what is there instead."""
    kind = type(value).__name__
    if value is None or isinstance(value, str | bytes | bool | dict | set):
        return None, f"the {what} is of type {kind}, a real number is required{_FORMS}"
    value = value.detach() if isinstance(value, torch.Tensor) else value
    shape = tuple(value.shape) if isinstance(value, torch.Tensor) else np.shape(value)
    if math.prod(shape) != 1:
        return None, f"the {what} has shape {shape}, one number is required{_FORMS}"
    # float() drops imaginary parts, reads text, and makes numbers of truth values.
    dtype = value.dtype if isinstance(value, torch.Tensor) else np.asarray(value).dtype
    if re.search("complex|bool|<U|>U|[|]S", str(dtype)):
        return None, f"the {what} of type {kind} is not a real number (its dtype is {dtype})"
    try:
        return float(value.reshape(()) if hasattr(value, "reshape") else value), None
    except (TypeError, ValueError, RuntimeError) as error:
        return None, f"the {what} of type {kind} is not a real number ({error})"


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
