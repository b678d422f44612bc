from __future__ import annotations

import importlib
import importlib.util
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pytest

from embodied_rl.config.terms import REQUIRED, TermSignature, find_terms, read_terms, shipped_modules
from embodied_rl.config.types import Positive, Range
from embodied_rl.config.validate import entry_model
from embodied_rl.problems import Problem

SAMPLE = '''
from __future__ import annotations

import math
from typing import Annotated, Literal

from embodied_rl.config.types import *
from embodied_rl.mdp import term
from embodied_rl.mdp.term import event, reward


def helper(env, *, not_a_parameter: float): ...


def unchanged(term):
    return term


@reward(needs=("foot_contact",))
def all_types(
    env,
    *,
    number: float,
    whole: int = -3,
    flag: bool = True,
    word: str = "x",
    choice: Literal["a", "b"] = "a",
    pair: tuple[float, float] = (-1, 1.5),
    many: tuple[float, ...] = (),
    maybe: float | None = None,
    bounded: Annotated[float, Ge(0), Lt(1.5)] = 0.5,
    positive: Positive = 1e-3,
    span: Range = (-math.pi, math.pi),
    group: BodyGroup = "feet",
    maybe_range: Range | None = None,
):
    """sum_j x_j^2

    And more.
    """


@event(mode="reset")
@unchanged
class second_decorator: ...


@term.termination()
class stateful:
    """z < limit"""

    size = 3

    def other(self, *, no: float): ...

    def __init__(self, name: str, *, limit: NonNegative = 0.1) -> None: ...


@term.observation(mirror="scalar")
class plain: ...
'''


def module_of(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def assert_reading_equals_inspection(signatures: list[TermSignature], module: ModuleType) -> None:
    """The oracle: what Python says of the imported module."""
    declared = {name for name, one in vars(module).items() if hasattr(one, "term_kind") and one.__module__ == module.__name__}
    assert {one.name for one in signatures} == declared
    for one in signatures:
        term = getattr(module, one.name)
        assert one.kind == term.term_kind
        assert one.doc == (term.__doc__ or "").strip().partition("\n")[0]
        inspected = {
            name: (eval(parameter.annotation, vars(module)), parameter.default)
            for name, parameter in inspect.signature(term).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY
        }
        read = {
            name: (
                parameter.annotation,
                inspect.Parameter.empty if parameter.default is REQUIRED else parameter.default,
            )
            for name, parameter in one.parameters.items()
        }
        assert read == inspected, one.name


def signatures_of(path: Path, name: str = "sample") -> list[TermSignature]:
    signatures = []
    for one in read_terms(path, name):
        assert isinstance(one, TermSignature), one
        signatures.append(one)
    return signatures


def test_reading_equals_inspection(tmp_path: Path) -> None:
    path = tmp_path / "sample.py"
    path.write_text(SAMPLE)
    signatures = signatures_of(path)
    assert [(one.name, one.kind) for one in signatures] == [
        ("all_types", "reward"),
        ("second_decorator", "event"),
        ("stateful", "termination"),
        ("plain", "observation"),
    ]
    assert_reading_equals_inspection(signatures, module_of(path))
    first = signatures[0]
    assert (first.module_path, first.module_name, first.doc) == (path, "sample", "sum_j x_j^2")
    assert SAMPLE.splitlines()[first.lineno - 1] == "def all_types("
    assert first.parameters["choice"].annotation == Literal["a", "b"]
    assert first.parameters["positive"].annotation == Positive
    assert first.parameters["span"].annotation == Range


@pytest.mark.parametrize(("path", "name"), shipped_modules(), ids=lambda one: one if isinstance(one, str) else "")
def test_shipped_terms(path: Path, name: str) -> None:
    signatures = signatures_of(path, name)
    assert_reading_equals_inspection(signatures, importlib.import_module(name))
    for one in signatures:
        assert one.doc, f"{one.name} has no formula as its first docstring line"
        filled: dict[str, Any] = {"weight": 1.0} if one.kind == "reward" else {}
        # every default suits its own type and bounds
        missing = [key for key, parameter in one.parameters.items() if parameter.default is REQUIRED]
        model = entry_model(one)
        assert {key for key, info in model.model_fields.items() if info.is_required()} == {*missing, *filled}
        if not missing:
            model.model_validate(filled)


def test_shipped_terms_are_found() -> None:
    terms, problems = find_terms()
    assert problems == []
    for kind, some in {
        "action": {"joint_position"},
        "reward": {"action_rate"},
        "termination": {"time_out", "tilt"},
    }.items():
        assert some <= terms[kind].keys()


def one_problem(source: str, folder: Path) -> str:
    path = folder / "own.py"
    path.write_text(source)
    (problem,) = read_terms(path, "own")
    assert isinstance(problem, Problem)
    return str(problem)


ALLOWED = (
    "allowed are float, int, bool, str, Literal, tuples of these, `| None`, Annotated and "
    "BodyGroup, Fraction, Ge, Gt, IntRange, JointGroup, Le, Lt, NonNegative, NonNegativeRange, PerGroup, Positive, Range"
)


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        ("x", "own.py:2: bad.x: has no type; write one, like `std: float`"),
        ("x: Tensor", f"own.py:2: bad.x: the type Tensor cannot be read; {ALLOWED}"),
        ("x: torch.Tensor", f"own.py:2: bad.x: the type torch.Tensor cannot be read; {ALLOWED}"),
        ("x: print('hello')", f"own.py:2: bad.x: the type print('hello') cannot be read; {ALLOWED}"),
        ("x: 'float'", f"own.py:2: bad.x: the type 'float' is not allowed; {ALLOWED}"),
        ("x: int | str", f"own.py:2: bad.x: the type int | str is not allowed; {ALLOWED}"),
        ("x: tuple[()]", f"own.py:2: bad.x: the type tuple[()] is not allowed; {ALLOWED}"),
        ("x: float[int]", f"own.py:2: bad.x: the type float[int] is not allowed; {ALLOWED}"),
        ("x: Annotated[str, Ge(0)]", f"own.py:2: bad.x: the type Annotated[str, Ge(0)] is not allowed; {ALLOWED}"),
        (
            "x: Annotated[float, Ge('a')]",
            f"own.py:2: bad.x: the type Annotated[float, Ge('a')] is not allowed; {ALLOWED}",
        ),
        ("x: float = 2 * y", "own.py:2: bad.x: the default 2 * y is not a literal (math.pi is)"),
        ("weight: float", "own.py:2: bad.weight: a parameter of a reward cannot have this name; rename it"),
        ("copy: float", "own.py:2: bad.copy: a parameter of a reward cannot have this name; rename it"),
        ("_x: float", "own.py:2: bad._x: a parameter of a reward cannot have this name; rename it"),
    ],
)
def test_unreadable_parameters(parameter: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert one_problem(f"@reward()\ndef bad(env, *, {parameter}): ...\n", tmp_path) == message


def test_scanning_runs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text("raise SystemExit\n@reward()\ndef fine(env, *, x: float = 1.0): ...\n")
    assert [one.name for one in signatures_of(path)] == ["fine"]


def test_a_file_is_read_again_once_it_has_changed_and_only_then(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text("@reward()\ndef fine(env, *, x: float = 1.0): ...\n")
    (first,), (again,) = signatures_of(path), signatures_of(path)
    assert again is first
    path.write_text("@reward()\ndef fine(env, *, x: float = 2.0): ...\n")
    (changed,) = signatures_of(path)
    assert (first.parameters["x"].default, changed.parameters["x"].default) == (1.0, 2.0)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("@reward()\ndef bad(): ...", "own.py:2: bad: is called with (env); write def bad(env)"),
        ("@reward()\ndef bad(env, std): ...", "own.py:2: bad: is called with (env); write def bad(env, *, std: float)"),
        (
            "@reward()\ndef bad(env, std: Positive = 1.0): ...",
            "own.py:2: bad: is called with (env); write def bad(env, *, std: Positive)",
        ),
        ("@reward()\ndef bad(env, **more): ...", "own.py:2: bad: is called with (env); write def bad(env)"),
        ("@event(mode='reset')\ndef bad(env): ...", "own.py:2: bad: is called with (env, draft); write def bad(env, draft)"),
        ("@reward\ndef bad(env): ...", "own.py:1: bad: write @reward()"),
        ("@term.reward\ndef bad(env): ...", "own.py:1: bad: write @term.reward()"),
        ("@reward(needs='x')\ndef bad(env): ...", "own.py:1: bad: needs='x' is no tuple; write needs=('x',)"),
        ("@command()\ndef bad(env): ...", "own.py:2: bad: a command is a class (docs/terms.md)"),
        (
            "@reward()\nclass bad:\n    def __call__(self, env, std): ...",
            "own.py:3: bad: __call__ is called with (env); write def __call__(self, env)",
        ),
        (
            "@reward()\nclass bad:\n    def __init__(self, *, std: float): ...",
            "own.py:3: bad: __init__ is called with (robot); write def __init__(self, robot, *, std: float)",
        ),
    ],
)
def test_a_term_that_cannot_be_called_is_told_how_to_be_written(
    source: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(source)
    assert [str(one) for one in read_terms(tmp_path / "own.py", "own") if isinstance(one, Problem)] == [said]
