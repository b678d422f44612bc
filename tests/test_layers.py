"""Imports point down only, and the light verbs import nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from embodied_rl.family import family_names
from embodied_rl.paths import PACKAGE, shipped

# Bottom to top.  A unit (a module, or a package with all it holds) imports itself and the rows below its own.
# A package may have one row and a module of it another: the longest name counts.
LAYERS = (
    ("paths", "errors", "machine", "compiled", "rotations", "random", "replay", "startup", "urdf", "waiting"),
    ("problems", "vector_env", "blocks"),
    ("strict_yaml", "own", "arguments"),
    ("sections",),
    ("robot",),
    ("config.types",),
    ("config.terms",),
    ("family",),
    ("config",),
    ("listing",),
    ("physics",),
    ("scene",),
    ("physics.tensors",),
    ("physics.isaacgym_model",),
    ("physics.native", "physics.warp", "physics.mjx", "physics.isaacgym"),
    ("mdp",),
    ("tasks",),
    ("cuda_graph", "legs", "doctor"),
    ("env", "sources"),
    ("make_env", "puppets"),
    ("learn.batch",),
    ("learn.cpu",),
    ("learn", "view"),
    ("adapters", "trial"),
    ("pools", "deploy", "new"),
    ("runs", "inspection", "audit"),
    ("robustness",),
    ("training",),
    ("bench",),
    ("embodied_rl",),
    ("cli",),
    ("__main__",),
)
RANK = {unit: rank for rank, row in enumerate(LAYERS) for unit in row}

# Engines are named in one place only, task families in none: embodied_rl.family loads whichever a page names.
ENGINES = ("physics.native", "physics.warp", "physics.mjx", "physics.isaacgym")
ONLY_FROM = {engine: {"make_env"} for engine in ENGINES} | {"tasks": set(), "sources": {"make_env"}, "cli": {"__main__"}}

# What a unit may not import from elsewhere, not even inside a function.
FOREIGN = {
    **{unit: {"torch", "mujoco", "numpy"} for unit in ("config", "config.types", "config.terms", "family")},
    "robot": {"torch"},
    "mdp": {"rsl_rl", "tensordict"},
    "env": {"rsl_rl", "tensordict"},
}

MODULES = {
    ".".join((package, *path.relative_to(folder).with_suffix("").parts)).removesuffix(".__init__"): path
    for package, folder in (("embodied_rl", PACKAGE), ("embodied_rl.tasks", shipped("tasks")))
    for path in sorted(folder.rglob("*.py"))
}
PACKAGES = {module.rpartition(".")[0] for module in MODULES}

HEAVY = ("torch", "jax", "warp", "mujoco_warp", "ray")


def unit_of(module: str) -> str:
    """The row entry that a module of the package belongs to."""
    if module == "embodied_rl":
        return module
    parts = module.split(".")[1:]
    for length in range(len(parts), 0, -1):
        if (unit := ".".join(parts[:length])) in RANK:
            return unit
    raise LookupError(f"{module} has no place: put it in a row of LAYERS in tests/test_layers.py")


def imported(source: str, module: str) -> Iterator[str]:
    """The full names that a module imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                package = module.split(".") if MODULES[module].stem == "__init__" else module.split(".")[:-1]
                kept = package[: len(package) - node.level + 1]
                origin = ".".join([*kept, origin] if origin else kept)
            for name in (f"{origin}.{alias.name}" for alias in node.names):
                if name != "embodied_rl.__version__":
                    yield name if name in MODULES or name in PACKAGES else origin


def violations(source: str, module: str) -> list[str]:
    unit, found = unit_of(module), []
    for name in imported(source, module):
        if name.split(".")[0] != "embodied_rl":
            if name.split(".")[0] in FOREIGN.get(unit, ()):
                found.append(f"{module} imports {name}: {unit} does without it")
            continue
        target = unit_of(name)
        if target == unit:
            continue
        if RANK[target] >= RANK[unit]:
            found.append(f"{module} imports {name}: {target} is not below {unit}")
        elif unit not in ONLY_FROM.get(target, {unit}):
            found.append(f"{module} imports {name}: only {', '.join(ONLY_FROM[target])} may")
    return found


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    assert violations(MODULES[module].read_text(encoding="utf-8"), module) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("embodied_rl.env", "from embodied_rl.physics.native import NativePhysics"),
        ("embodied_rl.env", "from embodied_rl.physics import native"),
        ("embodied_rl.env", "import tensordict"),
        ("embodied_rl.config.page", "def late():\n    import torch"),
        ("embodied_rl.config.page", "from mujoco import MjModel"),
        ("embodied_rl.family", "def late():\n    import torch"),
        ("embodied_rl.learn.evaluate", "from embodied_rl.tasks.velocity import score"),
        ("embodied_rl.mdp.term", "from embodied_rl import env"),
        ("embodied_rl.rotations", "from embodied_rl import make"),
        ("embodied_rl.paths", "from . import random"),
        ("embodied_rl.training", "import embodied_rl.cli"),
        ("embodied_rl.runs", "import embodied_rl.training"),
    ],
)
def test_a_wrong_import_is_found(module: str, source: str) -> None:
    assert len(violations(source, module)) == 1


def circles(imports: dict[str, set[str]]) -> list[set[str]]:
    """Modules that import each other, directly or round about: the strongly connected components of more than one."""
    reached: dict[str, set[str]] = {}
    for module in imports:
        found, ahead = set(), [module]
        while ahead:
            ahead = [name for one in ahead for name in imports.get(one, ()) if name not in found]
            found.update(ahead)
        reached[module] = found
    return [
        circle
        for module in sorted(imports)
        if module in reached[module]
        and min(circle := {other for other in reached[module] if module in reached.get(other, ())}) == module
    ]


#: Where a joint's velocity is a kind of control or a limit of a URDF, and no task family.
_CONTROLS = (
    *("mdp/actions.py", "mdp/term.py", "scene/build.py", "deploy/contract.py", "deploy/target.py", "new/source.py"),
    *("physics/isaacgym", "physics/urdf_writer.py"),
)


def mentions(source: str, families: list[str]) -> list[str]:
    """Strings of a module that are the name of a family, or speak of its package or of its command as a term."""
    texts = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return [
        text
        for text in texts
        if any(text == family or f"tasks.{family}" in text or f"{family}_command" in text for family in families)
    ]


def test_no_module_knows_a_task_family() -> None:
    """Families are folders that `embodied_rl.family` finds: the house goes on without any of them."""
    found = {
        str(path.relative_to(PACKAGE)): mentions(path.read_text(encoding="utf-8"), family_names())
        for path in sorted(PACKAGE.rglob("*.py"))
        if not path.relative_to(PACKAGE).as_posix().startswith((*_CONTROLS, "tasks/"))
    }
    assert {module: texts for module, texts in found.items() if texts} == {}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('entry.term == "velocity"', ["velocity"]),
        ("velocity = 'an angular velocity'", []),
        ('"Of a velocity_command."', ["Of a velocity_command."]),
        ('load("embodied_rl.tasks.velocity.score")', ["embodied_rl.tasks.velocity.score"]),
    ],
)
def test_a_family_is_found_where_it_is_named(source: str, found: list[str]) -> None:
    assert mentions(source, ["velocity"]) == found


def test_no_modules_import_each_other() -> None:
    """Not even for their types."""
    imports = {
        module: {name for name in imported(path.read_text(encoding="utf-8"), module) if name in MODULES and name != module}
        for module, path in MODULES.items()
        if module != "embodied_rl"  # the package itself lends its version to all, and imports late what it makes
    }
    assert circles(imports) == []


def test_a_circle_is_found() -> None:
    arrows = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"e"}, "e": {"f"}, "f": {"d"}, "g": set()}
    assert circles(arrows) == [{"b", "c"}, {"d", "e", "f"}]


#: Lines that a module may have; what grows beyond is two things.
MOST_LINES = 450


def too_long(folder: Path) -> dict[str, int]:
    """Modules below the folder with more than `MOST_LINES`, and how many they have."""
    files = [path for path in sorted(folder.rglob("*")) if path.suffix in (".py", ".cpp")]
    lines = {path.relative_to(folder).as_posix(): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    return {name: count for name, count in lines.items() if count > MOST_LINES}


@pytest.mark.parametrize("folder", [PACKAGE, shipped("tasks"), PACKAGE.parent / "benchmarks"], ids=lambda folder: folder.name)
def test_modules_stay_small(folder: Path) -> None:
    assert too_long(folder) == {}


def test_a_long_module_is_found_beside_a_short_one_of_its_name(tmp_path: Path) -> None:
    for place, count in (("a", MOST_LINES + 1), ("b", MOST_LINES)):
        (tmp_path / place).mkdir()
        (tmp_path / place / "env.py").write_text("pass\n" * count)
    assert too_long(tmp_path) == {"a/env.py": MOST_LINES + 1}


def test_a_new_module_must_be_placed() -> None:
    with pytest.raises(LookupError, match=r"embodied_rl\.helpers has no place: put it in a row of LAYERS"):
        unit_of("embodied_rl.helpers")


def _loaded(code: str, cwd: Path) -> set[str]:
    """The modules that a fresh interpreter has loaded after running the code."""
    code = f"import sys\n{code}\nprint('\\n' + ' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("module", ["embodied_rl", "embodied_rl.config"])
def test_checking_a_page_imports_nothing_heavy(module: str, tmp_path: Path) -> None:
    assert _loaded(f"import {module}", tmp_path).isdisjoint({*HEAVY, "mujoco", "numpy"})


@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["schema"], ["schema", "robot"]], ids=" ".join)
def test_light_verbs_import_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    code = f"""
sys.argv = ["embodied-rl", *{arguments!r}]
from embodied_rl.cli import main
try:
    status = main()
except SystemExit as end:
    status = end.code
assert not status, f"exit status {{status}}"
"""
    assert _loaded(code, tmp_path).isdisjoint(HEAVY)


def test_tasks_load_once(tmp_path: Path) -> None:
    assert "tasks" not in _loaded("import embodied_rl.tasks", tmp_path)
