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
import re
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, cast

import numpy as np

from specbp import exact
from specbp.methods import METHODS, Claims, Method
from specbp.probes import LAWS
from specbp.testing import blackbox
from verification.adapted import Adapted, as_tried, parameters
from verification.cases import View
from verification.checks.foreign import BlackBox
from verification.subjects import ScalarFunction, Subject, from_method, interval

ESTIMANDS = ("trace", "logdet")
EXPECTATIONS = ("tr A", "tr log A", "tr p(A)", "quadrature", "adaptive")
PREFIX = "method:"
RATCHET = "baseline"  # no estimator: the figures recorded for this platform
KNOWN = ("interval", "lower", "upper")  # parameters filled in from the spectrum of each problem
NUMBERS = (int, float, "int", "float")  # of probes, of products: no block of probes
COUNTS = re.compile("(num|n)_.*|.*_count|count|k|m|n|degree|steps")
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
        return _of_row(METHODS[request.name.removeprefix(PREFIX)], request)
    found = _imported(request.name)
    if isinstance(found, Method):
        return _of_row(found, request)
    if isinstance(found, Subject):
        _refuse_options(request, ())
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
    _refuse_number(found, request)
    probes = takes_probes(found, given=request.config)
    return _from_function(found, request) if probes else _black_box(found, request)


def check(request: Request) -> None:
    """Refuse what can be refused without importing anything.

    Raises:
        ResolveError: If the name has no colon, names no row, or an option is unknown.
    """
    if request.name == RATCHET:
        _refuse_options(request, ())
        return
    if request.name.startswith(PREFIX):
        name = request.name.removeprefix(PREFIX)
        _known("method", name, METHODS)
        _refuse_options(request, METHODS[name].config)
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


def _of_row(row: Method, request: Request) -> Subject:
    _refuse_options(request, row.config)
    return from_method(replace(row, config={**row.config, **request.config}))


def _refuse_options(request: Request, settable: Iterable[str]) -> None:
    """Refuse options to what has its own estimand, law and arguments."""
    given = {f"--set {key}": key not in settable for key in request.config}
    for option in ("estimand", "law", "expects"):
        given[f"--{option}"] = getattr(request, option) is not None
    refused = [option for option, wrong in given.items() if wrong]
    if refused:
        keys = ", ".join(settable)
        raise ResolveError(
            f"{request.name} has its own estimand, law and arguments: leave out "
            f"{', '.join(refused)}, or judge it in a run of its own"
            + (f"; --set takes {keys}." if keys else ".")
        )


def _refuse_number(function: Callable[..., Any], request: Request) -> None:
    leading = _leading(function)
    if len(leading) < 2 or leading[1].name in request.config:
        return
    second = leading[1]
    is_number = second.annotation in NUMBERS or COUNTS.fullmatch(second.name)
    if is_number and second.name not in RANDOM:
        raise ResolveError(
            f"{request.name} takes a number {second.name}: give it a value, --set {second.name}=..."
        )


def _refuse_call(
    function: Callable[..., Any], request: Request, *given: Any, **keywords: Any
) -> None:
    """Refuse a function whose signature has no room for the arguments, or for further ones."""
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):
        return
    try:
        signature.bind_partial(**keywords)  # names first what there is too much of
        signature.bind(*given, **keywords)
    except TypeError as error:
        raise ResolveError(
            f"{request.name}{signature} cannot be called: {error}. Its arguments are an operator, "
            "its probes or a generator, and those of --set KEY=VALUE."
        ) from error


def takes_probes(function: Callable[..., Any], given: Container[str] = ()) -> bool:
    """A parameter `probes`, or two leading positional ones, the second no generator and no number.

    Args:
        function: Callable with a signature.
        given: Names of the arguments that are set already.
    """
    if "probes" in parameters(function) and "probes" not in given:
        return True
    leading = _leading(function)
    if len(leading) < 2 or leading[1].name in given:
        return False
    second = leading[1]
    return second.name not in (*RANDOM, *KNOWN) and second.annotation not in NUMBERS


def _leading(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """Positional parameters without a default."""
    return [
        p
        for p in parameters(function).values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty
    ]


def _from_function(function: Callable[..., Any], request: Request) -> Subject:
    names = parameters(function)
    needs = [k for k in KNOWN if k in names and k not in request.config]
    further = {**request.config, **dict.fromkeys(needs)}
    if "probes" in names:
        _refuse_call(function, request, None, **{"probes": None, **further})
    else:
        _refuse_call(function, request, None, None, **further)
    expects = _expects(request)
    law = request.law or "rademacher"
    subject = Subject(
        name=request.name,
        estimate=Adapted(function),
        on="J" if next(iter(names), "") == "J" else "A",
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
    return as_tried(subject, function)


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
    if request.expects is not None:
        raise ResolveError(
            f"{request.name} takes no probes: --expects is about functions of probes, leave it out."
        )
    bound = partial(function, **request.config) if request.config else function
    if not blackbox.takes_generator(bound):
        _refuse_call(function, request, None, **request.config)
    elif "generator" in parameters(bound):
        _refuse_call(function, request, None, generator=None, **request.config)
    else:
        _refuse_call(function, request, None, None, **request.config)
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


def _kind(found: Any) -> str:
    return f"the class {found.__name__}" if inspect.isclass(found) else f"a {type(found).__name__}"
