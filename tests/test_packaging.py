"""What is installed and how: versions, pins, the wheel's contents, and the Makefile's set-up."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import specbp

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PINS = dict(
    line.split("==", 1) for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()
)
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def read(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def requirements() -> list[Requirement]:
    """Direct requirements: the package's, its extras' and the build's, but for foreign ones."""
    project = PROJECT["project"]
    optional = project["optional-dependencies"].items()
    extras = [lines for name, lines in optional if name != "foreign"]
    lines = project["dependencies"] + [line for extra in extras for line in extra]
    return [Requirement(line) for line in lines + PROJECT["build-system"]["requires"]]


def test_version_is_the_same_everywhere():
    assert f"\nversion: {specbp.__version__}\n" in read("CITATION.cff")
    assert f"\n## [{specbp.__version__}]" in read("CHANGELOG.md")


def test_oldest_python_is_the_same_everywhere():
    major, minor = re.fullmatch(r">=(\d+)\.(\d+)", PROJECT["project"]["requires-python"]).groups()
    assert PROJECT["tool"]["ruff"]["target-version"] == f"py{major}{minor}"
    assert PROJECT["tool"]["mypy"]["python_version"] == f"{major}.{minor}"
    assert set(re.findall(r"version_info < \((\d+), (\d+)\)", read("Makefile"))) == {(major, minor)}
    assert f'python: "{major}.{minor}"' in read(".github/workflows/ci.yml")


def test_pins_are_exact_and_fit_every_build():
    # No local version: torch==2.13.0 is satisfied by 2.13.0+cpu and by any CUDA build.
    for name, version in PINS.items():
        assert re.fullmatch(r"[A-Za-z0-9._-]+", name), name
        assert re.fullmatch(r"[0-9][0-9a-z.]*", version), f"{name}=={version}"


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_every_requirement_is_pinned_within_its_bounds(requirement):
    pins = {canonicalize_name(name): version for name, version in PINS.items()}
    assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)])


def third_party(folder: str, *, top_level_only: bool) -> set[str]:
    """Names of the distributions that the files of a folder import."""
    heads: set[str] = set()
    for path in (ROOT / folder).rglob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        for node in tree.body if top_level_only else ast.walk(tree):
            if isinstance(node, ast.Import):
                heads |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                heads.add(str(node.module).partition(".")[0])
    heads -= set(sys.stdlib_module_names) | {"specbp", "verification", "tests"}
    distributions = importlib.metadata.packages_distributions()
    return {canonicalize_name(distributions.get(head, [head])[0]) for head in heads}


@pytest.mark.parametrize(
    ("folder", "extras", "top_level_only"),
    [
        ("specbp", (), True),
        ("specbp", ("verify",), False),  # inside functions: what only some data sets need
        ("verification", ("verify",), False),
        ("tests", ("verify", "dev", "foreign"), False),
    ],
)
def test_what_is_imported_is_declared(folder, extras, top_level_only):
    project = PROJECT["project"]
    lines = [*project["dependencies"]]
    for extra in extras:
        lines += project["optional-dependencies"][extra]
    declared = {canonicalize_name(Requirement(line).name) for line in lines}
    assert third_party(folder, top_level_only=top_level_only) - declared == set()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("needs hatchling, of the extra dev")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_wheel_holds_the_package_its_types_and_its_licence(wheel):
    names = set(wheel.namelist())
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "specbp").rglob("*.py")}
    assert modules | {"specbp/py.typed"} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert Path(wheel.filename).name.startswith(f"specbp-{specbp.__version__}-")


def test_wheel_holds_nothing_else(wheel):
    heads = {name.partition("/")[0] for name in wheel.namelist()}
    assert {head for head in heads if not head.endswith(".dist-info")} == {"specbp"}
    assert not [name for name in wheel.namelist() if "__pycache__" in name]


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "specbp.invalid"])
def test_tests_cannot_leave_the_machine(host):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as link, pytest.raises(RuntimeError, match="use no network"):
        link.connect((host, 80))


def test_tests_can_reach_a_local_server():
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()


def test_tests_use_one_thread():
    assert torch.get_num_threads() == 1


# The Makefile, driven with interpreters that only write down what they are asked ------------------

FAKE_PYTHON = """#!/bin/sh
echo "$@" >> "{log}"
case "$1 $2" in
    "--version ") echo "Python {version}" ;;
    "-m venv") for last; do :; done; mkdir -p "$last/bin"; cp "$0" "$last/bin/python" ;;
    "-c "*) exit {too_old} ;;
esac
"""


@pytest.fixture
def clone(tmp_path):
    """A folder with the files that the set-up reads."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def fake_python(path: Path, *, version: str, too_old: bool) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    log = path.parent / "log"
    path.write_text(FAKE_PYTHON.format(log=log, version=version, too_old=int(too_old)))
    path.chmod(0o755)
    return path


def make(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run make there, outside any virtual environment or outer make."""
    dropped = ("VIRTUAL_ENV", "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PYTHON", "MAKEOVERRIDES")
    inherited = {name: value for name, value in os.environ.items() if name not in dropped}
    return subprocess.run(
        ["make", *arguments],
        cwd=folder,
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def installs(log: Path) -> list[str]:
    return [line for line in log.read_text().splitlines() if "pip install" in line]


@needs_make
def test_make_help_lists_every_target(clone):
    listed = re.findall(r"^  make (\w+) +\S", make(clone, "help").stdout, re.MULTILINE)
    assert sorted(listed) == sorted(re.search(r"\.PHONY: (.*)", read("Makefile"))[1].split())


@needs_make
def test_make_installs_once_and_again_when_the_pins_change(clone):
    python = fake_python(clone / "bin" / "python3", version="3.12.1", too_old=False)
    for _ in range(2):
        assert make(clone, "install", f"PYTHON={python}").returncode == 0
    (line,) = installs(python.parent / "log")
    assert line.endswith("-c constraints.txt -e .[verify,dev]")
    later = (clone / ".venv" / ".specbp-installed").stat().st_mtime + 1
    os.utime(clone / "constraints.txt", (later, later))
    assert make(clone, "install", f"PYTHON={python}").returncode == 0
    assert len(installs(python.parent / "log")) == 2


@needs_make
def test_make_skips_an_old_python(clone):
    old = fake_python(clone / "old" / "python3", version="3.9.2", too_old=True)
    new = fake_python(clone / "new" / "python3.12", version="3.12.1", too_old=False)
    result = make(clone, "install", f"CANDIDATES={old} {new}")
    assert result.returncode == 0, result.stderr
    assert "Python 3.12.1" in result.stdout
    assert not installs(old.parent / "log")


@needs_make
def test_make_says_what_it_found_when_every_python_is_old(clone):
    old = fake_python(clone / "old" / "python3", version="3.9.2", too_old=True)
    result = make(clone, "test", f"CANDIDATES={old} no-such-python")
    assert result.returncode != 0
    assert "needs Python >= 3.11" in result.stderr
    assert f"{old}: Python 3.9.2" in result.stderr
    assert not (clone / ".venv").exists()


@needs_make
def test_make_uses_the_active_environment(clone):
    active = fake_python(clone / "mine" / "bin" / "python", version="3.12.1", too_old=False)
    assert make(clone, "install", VIRTUAL_ENV=str(clone / "mine")).returncode == 0
    assert len(installs(active.parent / "log")) == 1
    assert not (clone / ".venv").exists()


@needs_make
def test_make_refuses_an_active_environment_that_is_too_old(clone):
    active = fake_python(clone / "mine" / "bin" / "python", version="3.9.2", too_old=True)
    result = make(clone, "install", VIRTUAL_ENV=str(clone / "mine"))
    assert result.returncode != 0
    assert "has Python 3.9.2" in result.stderr
    assert not installs(active.parent / "log")


def report_commands(clone: Path, *arguments: str, status: int = 0) -> list[str]:
    """What `make report` asks of python when the run exits with this status."""
    python = fake_python(clone / "bin" / "python3", version="3.12.1", too_old=False)
    assert make(clone, "install", f"PYTHON={python}").returncode == 0
    script = clone / ".venv" / "bin" / "python"
    script.write_text(script.read_text() + f'[ "$3" != run ] || exit {status}\n')
    assert (make(clone, "report", *arguments).returncode != 0) == bool(status)
    lines = (python.parent / "log").read_text().splitlines()
    return [line for line in lines if "verification" in line]


@needs_make
@pytest.mark.parametrize("status", [0, 1])
def test_make_report_writes_the_report_and_keeps_the_verdict(clone, status):
    assert report_commands(clone, status=status) == [
        "-m verification run --tier standard",
        "-m verification report --tier standard --readme README.md",
    ]


@needs_make
def test_make_report_stops_when_the_run_did_not_finish(clone):
    assert report_commands(clone, status=130) == ["-m verification run --tier standard"]


@needs_make
def test_table_of_the_readme_is_that_of_the_standard_tier(clone):
    assert "README" not in report_commands(clone, "TIER=smoke")[1]
