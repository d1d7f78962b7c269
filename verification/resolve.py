"""What `--estimator` names: a row of our table, a subject, a function of probes, or a black box.

`method:NAME` is a row of the methods table; `pkg.mod:name` is imported and may be a `Method`, a
`Subject`, a function `(operator, probes, ...)`, whose claims come from the command line, or any
other callable of an operator (and, if it wants one, a `generator`), of which nothing is believed.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from specbp import Estimate, exact, generator_for
from specbp.estimate import EstimationError, from_samples
from specbp.methods import METHODS, Claims, Method
from specbp.operators import CountingOperator
from specbp.probes import LAWS
from specbp.testing import blackbox, capture
from verification.cases import View
from verification.checks.foreign import BlackBox
from verification.checks.problems import problem
from verification.subjects import ScalarFunction, Subject, from_method, interval

ESTIMANDS = ("trace", "logdet")
EXPECTATIONS = ("tr A", "tr log A", "tr p(A)", "quadrature", "adaptive")
PREFIX = "method:"
RATCHET = "baseline"  # no estimator: the figures recorded for this platform
KNOWN = ("interval", "lower", "upper")  # parameters filled in from the spectrum of each problem
NUMBERS = (int, float, "int", "float")  # of probes, of products: no block of probes
RANDOM = ("generator", "rng", "seed", "key", "random_state")


class ResolveError(ValueError):
    """An estimator was named that cannot be judged; the message says what to write instead."""


@dataclass(frozen=True)
class Request:
    """One estimator to judge, as it was named; it travels between processes.

    Attributes:
        name: "method:NAME" or "pkg.mod:name".
        estimand: "trace" or "logdet"; required for functions and black boxes.
        law: Law of the probes; of a function "rademacher" unless given, of a black box recognised
            unless given.
        expects: What a function is unbiased for, one of `EXPECTATIONS`.
        config: Keyword arguments handed to the estimator.
    """

    name: str
    estimand: str | None = None
    law: str | None = None
    expects: str | None = None
    config: dict[str, Any] = field(default_factory=dict)


def resolve(request: Request) -> Subject | BlackBox:
    """What the request names; a module that it names is imported here, and its code runs.

    Raises:
        ResolveError: If nothing can be judged under that name.
    """
    check(request)
    if request.name.startswith(PREFIX):
        return from_method(METHODS[request.name.removeprefix(PREFIX)])
    found = _imported(request.name)
    if isinstance(found, Method):
        return from_method(found)
    if isinstance(found, Subject):
        return found
    if inspect.isclass(found) or not callable(found):
        raise ResolveError(
            f"{request.name} is {_kind(found)}: an estimator is a Method, a Subject, or a function "
            "of an operator. Name one of these."
        )
    if request.estimand is None:
        raise ResolveError(
            f"{request.name} is a function: say what it estimates, --estimand trace or logdet."
        )
    probes = takes_probes(found, given=request.config)
    return _from_function(found, request) if probes else _black_box(found, request)


def check(request: Request) -> None:
    """Refuse what can be refused without importing anything.

    Raises:
        ResolveError: If the name has no colon, names no row, or an option is unknown.
    """
    if request.name == RATCHET:
        return
    if request.name.startswith(PREFIX):
        _known("method", request.name.removeprefix(PREFIX), METHODS)
    elif not all(part.strip() for part in request.name.split(":")) or request.name.count(":") != 1:
        raise ResolveError(
            f"{request.name!r} names no estimator: write pkg.module:name, or method:NAME for a row "
            "of the methods table."
        )
    for what, value, choices in (
        ("--estimand", request.estimand, ESTIMANDS),
        ("--law", request.law, LAWS),
        ("--expects", request.expects, EXPECTATIONS),
    ):
        if value is not None:
            _known(what, value, choices)


def settings_from(pairs: Iterable[str]) -> dict[str, Any]:
    """Keyword arguments from "key=value"; a value is a Python literal or else a string.

    Raises:
        ResolveError: If a pair has no "=" or its key is no identifier.
    """
    config = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not (equals and key.isidentifier()):
            raise ResolveError(f"--set wants key=value with a Python name as key, got {pair!r}.")
        try:
            config[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            config[key] = text
    return config


def takes_probes(function: Callable[..., Any], given: Container[str] = ()) -> bool:
    """A parameter `probes`, or two leading positional ones, the second no generator and no number.

    Args:
        function: Callable with a signature.
        given: Names of the arguments that are set already.
    """
    parameters = list(_parameters(function).values())
    if any(p.name == "probes" for p in parameters):
        return True
    leading = [
        p
        for p in parameters
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty
    ]
    if len(leading) < 2 or leading[1].name in given:
        return False
    second = leading[1]
    return second.name not in (*RANDOM, *KNOWN) and second.annotation not in NUMBERS


class Adapted:
    """A function `(operator, probes, ...)` as an estimator of the library.

    It may return an `Estimate`, or whatever `blackbox.as_outcome` reads: a number, a pair of value
    and standard error. Batches are looped over unless it returns an `Estimate` that has them.
    """

    def __init__(self, function: Callable[..., Any], *, tensors_only: bool = False):
        self.function, self.tensors_only = function, tensors_only
        self.takes_batches = True

    def __call__(self, A: Any, probes: Tensor, **arguments: Any) -> Estimate:
        """Estimates of the batch of A and `probes`."""
        if self.tensors_only and not isinstance(A, Tensor):
            A = A @ torch.eye(A.shape[-1], dtype=A.dtype)
        batch = torch.broadcast_shapes(A.shape[:-2], probes.shape[:-2])
        if not batch:
            return self._single(A, probes, arguments)
        whole = self._whole(A, probes, arguments) if self.takes_batches else None
        if whole is not None and whole.value.shape == batch:
            return whole
        self.takes_batches = False
        blocks = probes.expand(*batch, *probes.shape[-2:]).flatten(0, -3)
        matrices = A.expand(*batch, *A.shape[-2:]).flatten(0, -3) if len(A.shape) > 2 else None
        pairs = zip([A] * len(blocks) if matrices is None else matrices, blocks, strict=True)
        return _stacked([self._single(*pair, arguments) for pair in pairs], batch)

    def _whole(self, A: Any, probes: Tensor, arguments: dict[str, Any]) -> Estimate | None:
        try:
            found = self.function(A, probes, **arguments)
        except Exception:  # it takes no batches; one at a time shows what else may be wrong
            return None
        return found if isinstance(found, Estimate) else None

    def _single(self, A: Any, X: Tensor, arguments: dict[str, Any]) -> Estimate:
        recorder = capture.recording(A)
        found = self.function(recorder, X, **arguments)
        if isinstance(found, Estimate):
            return found
        outcome = blackbox.as_outcome(found)
        if outcome.value is None:
            raise EstimationError(outcome.reason)
        bar = float("nan") if outcome.standard_error is None else outcome.standard_error
        products = sum(product.block.shape[-1] for product in recorder.record)
        value = torch.tensor([outcome.value], dtype=torch.float64)
        return replace(
            from_samples(value, num_matvecs=products),
            standard_error=torch.tensor(bar, dtype=torch.float64),
            samples=value.new_empty((0,)),
        )


def _stacked(items: list[Estimate], batch: torch.Size) -> Estimate:
    names = ("value", "standard_error", "lower", "upper", "status", "samples")
    parts = {name: torch.stack([getattr(item, name) for item in items]) for name in names}
    shaped = {name: part.reshape(*batch, *part.shape[1:]) for name, part in parts.items()}
    return Estimate(num_matvecs=items[0].num_matvecs, **shaped)


def _from_function(function: Callable[..., Any], request: Request) -> Subject:
    parameters = _parameters(function)
    needs = [k for k in KNOWN if k in parameters and k not in request.config]
    expects = _expects(request)
    law = request.law or "rademacher"
    subject = Subject(
        name=request.name,
        estimate=Adapted(function),
        on="J" if next(iter(parameters), "") == "J" else "A",
        estimand=cast('Literal["trace", "logdet"]', request.estimand),
        claims=Claims(
            cast(Any, "tr p(A)" if expects == "tr log A" else expects),
            matvecs=lambda _n, _m, _c: float("nan"),
            additive=expects != "adaptive",
        ),
        config=dict(request.config),
        arguments=partial(_arguments, needs),
        contract=partial(_contract, expects, request.config),
        sampler=LAWS[law],
        law=law,
    )
    return _as_tried(subject, function)


def _as_tried(subject: Subject, function: Callable[..., Any]) -> Subject:
    """The subject, claiming the error bars and the products that a trial call had."""
    view = problem("cond 1e2", 8).views[subject.on]
    X = subject.draw(8, 4, generator=generator_for("gate", "trial"))
    try:
        found = subject.call(view, X)
    except Exception:  # the checks call it again, and report what is wrong
        return subject
    each = found.num_matvecs / X.shape[-1]
    claims = replace(
        subject.claims,
        matvecs=lambda _n, m, _c: m * each,
        calibrated=bool(torch.isfinite(found.standard_error).all()),
    )
    subject = replace(subject, claims=claims)
    try:
        subject.call(replace(view, operator=CountingOperator(view.operator)), X)
    except Exception:  # it wants a tensor
        adapted = Adapted(function, tensors_only=True)
        on = subject.on if subject.on == "J" else "dense A"
        return replace(subject, estimate=adapted, on=on)
    return subject


def _expects(request: Request) -> str:
    """What a function is unbiased for: as said, or as its arguments suggest."""
    needed = {"quadrature": "num_steps", "tr p(A)": "degree", "adaptive": "degree"}
    if request.expects is None:
        if request.estimand == "trace":
            return "tr A"
        suggested = [e for e in ("quadrature", "tr p(A)") if needed[e] in request.config]
        return next(iter(suggested), "tr log A")
    if (request.expects == "tr A") != (request.estimand == "trace"):
        raise ResolveError(
            f"--expects {request.expects!r} is not about a {request.estimand}: a trace is expected "
            "as 'tr A', a logdet as one of the others."
        )
    key = needed.get(request.expects, "")
    if key and key not in request.config:
        raise ResolveError(f"--expects {request.expects!r} needs --set {key}=NUMBER.")
    return request.expects


def _contract(expects: str, config: dict[str, Any], view: View) -> ScalarFunction:
    if expects == "tr p(A)":
        return exact.chebyshev_log(config["degree"], interval(view))
    return cast(ScalarFunction, np.asarray if expects == "tr A" else np.log)


def _arguments(needs: list[str], view: View) -> dict[str, Any]:
    a, b = interval(view)
    known = {"interval": (a, b), "lower": a, "upper": b}
    return {key: known[key] for key in needs}


def _black_box(function: Callable[..., Any], request: Request) -> BlackBox:
    bound = partial(function, **request.config) if request.config else function
    return BlackBox(request.name, bound, str(request.estimand), request.law)


def _imported(name: str) -> Any:
    module_name, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if not f"{module_name}.".startswith(f"{missing}."):
            raise ResolveError(f"{module_name} needs {missing}, which is not installed.") from error
        raise ResolveError(
            f"No module {missing!r}: write pkg.module:name with a module that Python finds from "
            "here, or add its folder to PYTHONPATH."
        ) from error
    except Exception as error:
        raise ResolveError(
            f"Importing {module_name} raised {type(error).__name__}: {error}"
        ) from error
    for attribute in path.split("."):
        if not hasattr(found, attribute):
            near = difflib.get_close_matches(attribute, dir(found), n=3, cutoff=0.5)
            hint = f"; did you mean {', '.join(near)}?" if near else "."
            raise ResolveError(f"{module_name} has no {attribute!r}{hint}")
        found = getattr(found, attribute)
    return found


def _known(what: str, value: str, choices: Iterable[str]) -> None:
    choices = list(choices)
    if value not in choices:
        near = difflib.get_close_matches(value, choices, n=3, cutoff=0.4)
        listed = f"did you mean {', '.join(near)}?" if near else f"one of {', '.join(choices)}."
        raise ResolveError(f"{what} is not {value!r}: {listed}")


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(function).parameters)
    except (ValueError, TypeError):  # built in, without a signature: an operator is all it gets
        return {}


def _kind(found: Any) -> str:
    return f"the class {found.__name__}" if inspect.isclass(found) else f"a {type(found).__name__}"
