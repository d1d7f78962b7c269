"""What `--estimator` names: every kind is found, and what cannot be judged is refused helpfully."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from specbp import exact, generator_for
from specbp.methods import METHODS
from tests.verification import wild
from verification.checks.foreign import BlackBox
from verification.checks.problems import problem
from verification.resolve import Request, ResolveError, resolve, settings_from, takes_probes
from verification.subjects import Subject, interval

HERE = "tests.verification.wild"


def named(name, estimand="trace", **options):
    return resolve(Request(f"{HERE}:{name}", estimand, **options))


def test_rows_are_found_by_name_and_by_path():
    assert resolve(Request("method:slq")).name == "slq"
    found = named("row", None)
    assert isinstance(found, Subject)
    assert found.name == "hutchinson"
    assert named("subject", None) is wild.subject


@pytest.mark.parametrize("name", ["estimate", "pair", "tensor_only", "of_factor", "with_interval"])
def test_functions_of_probes_become_subjects_that_estimate(name):
    found = named(name)
    assert isinstance(found, Subject)
    view = problem("cond 1e2", 8).views[found.on]
    X = found.draw(8, 3, generator=generator_for("r"), batch_shape=(5,))
    values = found.call(view, X).value
    assert values.shape == (5,)
    forms = torch.from_numpy(found.oracle(view, X[2])).mean()
    torch.testing.assert_close(values[2], forms)


def test_the_first_parameter_J_asks_for_a_factor():
    assert named("of_factor").on == "J"


def test_options_reach_the_subject():
    found = named("with_interval", law="sphere", config={"scale": 2.0})
    view = problem("easy", 8).views["A"]
    assert found.law == "sphere"
    assert found.config == {"scale": 2.0}
    assert set(found.arguments(view)) == {"interval"}


def test_expectations_select_the_contract():
    lam = problem("easy", 8).views["A"].eigenvalues
    view = problem("easy", 8).views["A"]
    found = named("pair", "logdet")
    np.testing.assert_array_equal(found.contract(view)(lam), np.log(lam))
    quadrature = named("any_keywords", "logdet", config={"num_steps": 4})
    assert quadrature.claims.expectation == "quadrature"
    polynomial = named("any_keywords", "logdet", config={"degree": 3})
    assert polynomial.claims.expectation == "tr p(A)"
    assert 0 < np.abs(polynomial.contract(view)(lam) - np.log(lam)).max() < 0.1
    assert not named(
        "any_keywords", "logdet", expects="adaptive", config={"degree": 3}
    ).claims.additive


def test_other_callables_are_black_boxes():
    found = named("right", law="gaussian")
    assert isinstance(found, BlackBox)
    assert found.law == "gaussian"
    assert named("exact", "logdet", config={}).estimand == "logdet"


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda A, probes: 0, True),
        (lambda A, *, probes: 0, True),
        (lambda A, omega: 0, True),
        (lambda A, generator: 0, False),
        (lambda A, rng: 0, False),
        (lambda A, steps=3: 0, False),
        (lambda A: 0, False),
        (abs, False),
    ],
)
def test_which_functions_take_probes(function, expected):
    assert takes_probes(function) == expected


def test_a_number_of_products_is_no_block_of_probes():
    def counted(A, num_matvecs: int):
        return 0 * num_matvecs

    assert not takes_probes(counted)
    assert not takes_probes(lambda A, count: 0, given={"count": 3})
    assert takes_probes(lambda A, omega: 0, given={"count": 3})


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request("slq"), "pkg.module:name, or method:NAME"),
        (Request("a:b:c"), "pkg.module:name"),
        (Request("method:slqq"), "did you mean slq"),
        (Request("no_such_module_here:f"), "No module 'no_such_module_here'"),
        (Request(f"{HERE}x:f"), "No module"),
        (Request(f"{HERE}:pairs", "trace"), "did you mean pair"),
        (Request(f"{HERE}:not_callable", "trace"), "is a int"),
        (Request("torch:Tensor", "trace"), "the class Tensor"),
        (Request(f"{HERE}:pair"), "--estimand trace or logdet"),
        (Request(f"{HERE}:pair", "norm"), "--estimand is not 'norm'"),
        (Request(f"{HERE}:pair", "trace", law="cauchy"), "--law is not 'cauchy'"),
        (Request(f"{HERE}:pair", "trace", expects="quadrature"), "expected as 'tr A'"),
        (Request(f"{HERE}:pair", "trace", config={"nosuch": 3}), "unexpected keyword"),
        (Request(f"{HERE}:right", "trace", config={"nosuch": 3}), "unexpected keyword"),
        (Request(f"{HERE}:right", "trace", expects="tr A"), "takes no probes: --expects"),
        (Request(f"{HERE}:needs_a_number", "trace"), "a value, --set num_probes=..."),
        (Request(f"{HERE}:needs_a_scale", "trace"), "missing a required argument: 'scale'"),
        (Request("method:slq", "logdet"), "leave out --estimand"),
        (Request("method:slq", law="gaussian"), "leave out --law"),
        (Request("method:slq", config={"nosuch": 3}), "leave out --set nosuch.*takes num_steps"),
        (Request(f"{HERE}:row", "trace", config={"nosuch": 3}), "--set nosuch, --estimand"),
        (Request(f"{HERE}:subject", expects="tr A"), "leave out --expects"),
        (Request(f"{HERE}:pair", "logdet", expects="tr p(A)"), "--set degree"),
        (Request(f"{HERE}:pair", "logdet", expects="quadrature"), "--set num_steps"),
    ],
)
def test_what_cannot_be_judged_is_refused(request_, message):
    with pytest.raises(ResolveError, match=message.replace("(", r"\(")):
        resolve(request_)


def test_a_module_that_cannot_be_imported_says_why(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "wild_broken.py").write_text("1 / 0\n")
    (tmp_path / "wild_needs.py").write_text("import a_library_nobody_has\n")
    with pytest.raises(ResolveError, match="raised ZeroDivisionError"):
        resolve(Request("wild_broken:f"))
    with pytest.raises(ResolveError, match="wild_needs needs a_library_nobody_has"):
        resolve(Request("wild_needs:f"))


def test_settings_are_literals_or_strings():
    pairs = ["degree=30", "kind=series", "tol=1e-3", "safe=False", "text=a=b"]
    assert settings_from(pairs) == {
        "degree": 30,
        "kind": "series",
        "tol": 1e-3,
        "safe": False,
        "text": "a=b",
    }
    for pair in ("degree", "=3", "two words=3"):
        with pytest.raises(ResolveError, match="key=value"):
            settings_from([pair])


def test_every_row_has_a_subject():
    assert [resolve(Request(f"method:{name}")).name for name in METHODS] == list(METHODS)


def test_the_arguments_of_a_row_can_be_set():
    assert resolve(Request("method:slq", config={"num_steps": 5})).config == {"num_steps": 5}
    view = problem("easy", 8).views["A"]
    found = resolve(Request("method:taylor", config={"degree": 3}))
    assert found.contract(view)(view.eigenvalues) == pytest.approx(
        exact.taylor_log(3, interval(view)[1])(view.eigenvalues)
    )


def test_a_number_that_has_its_value_is_no_reason_to_refuse():
    assert isinstance(named("needs_a_number", config={"num_probes": 3}), BlackBox)
    assert isinstance(named("any_keywords", config={"nosuch": 3}), Subject)
