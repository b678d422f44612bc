"""The wheel holds what the checkout holds, and works in a clean venv away from it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

import embodied_rl

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ("configs", "policies", "robots", "tasks")
SOURCES = ("embodied_rl", *SHIPPED)


def _run(*command: str | Path, cwd: Path) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def named_extras(text: str) -> set[str]:
    """The extras in `pip install -e ".[a,b]"`, `install_hint("a")`, and `[a]` alone on the README's line of extras."""
    lists = re.findall(r'"\.\[([\w,]+)\]"', text) + re.findall(r"""install_hint\(["'](\w+)["']\)""", text)
    lists += [one for line in text.splitlines() if line.startswith("Extras:") for one in re.findall(r"`\[(\w+)\]`", line)]
    return {name for one in lists for name in one.split(",")}


def test_extras_that_are_named_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    texts = [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "Makefile",
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "embodied_rl").rglob("*.py"),
    ]
    named = {path.name: named_extras(path.read_text(encoding="utf-8")) for path in texts}
    assert {file: missing for file, names in named.items() if (missing := names - set(extras))} == {}
    assert {"cuda", "mjx", "ray"} <= named["Makefile"] and "all" in named["README.md"] and "dmc" in named["singles.py"]


def test_all_is_every_extra_but_the_tools() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    (everything,) = extras["all"]
    assert everything == f"embodied-rl[{','.join(name for name in extras if name not in ('all', 'dev'))}]"


def test_the_citation_names_this_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.+)$", citation, re.MULTILINE) == [embodied_rl.__version__]


@pytest.mark.parametrize("folder", SHIPPED)
def test_mapped_folders_are_packages(folder: str) -> None:
    # An editable install finds a folder outside the package only if it has an __init__.py.
    assert (ROOT / folder / "__init__.py").is_file()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, built from a copy: setuptools leaves a build folder behind, and stale files of an old one get in."""
    folder = tmp_path_factory.mktemp("wheel")
    unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in SOURCES:
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=unwanted)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    _run(*pip, "--wheel-dir", folder, folder / "source", cwd=folder)
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_the_package_alone(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")}
    assert {name.split("/")[0] for name in names} == {
        "embodied_rl",
        f"{wheel.name.removesuffix('-py3-none-any.whl')}.dist-info",
    }
    expected = {
        (path.relative_to(ROOT) if folder == "embodied_rl" else Path("embodied_rl") / path.relative_to(ROOT)).as_posix()
        for folder in SOURCES
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert "embodied_rl/robots/go2/robot.yaml" in names
    assert "embodied_rl/configs/go2_flat.yaml" in names


def test_the_wheel_works_in_a_clean_venv(wheel: Path, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    _run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=tmp_path)
    scheme = {"base": str(venv), "platbase": str(venv)}
    site, scripts = (sysconfig.get_path(kind, "venv", vars=scheme) for kind in ("purelib", "scripts"))
    python, before = Path(scripts) / "python", set(Path(site).iterdir())
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index")
    _run(*pip, wheel, cwd=tmp_path)
    added = {path.name for path in set(Path(site).iterdir()) - before}
    assert {name for name in added if not name.endswith(".dist-info")} == {"embodied_rl"}

    # The dependencies are those of the running environment.  A .pth file in there is not read, so that an editable
    # install of this checkout cannot answer in the wheel's place.
    (Path(site) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    assert "go2_flat" in _run(Path(scripts) / "embodied-rl", "list", cwd=tmp_path)
    code = (
        "import sys, embodied_rl.tasks; from embodied_rl import paths; "
        "print('tasks' in sys.modules, paths.shipped('configs'), embodied_rl.tasks.__path__[0])"
    )
    twice, configs, tasks = _run(python, "-c", code, cwd=tmp_path).split()
    assert twice == "False"
    assert Path(configs).is_relative_to(site)
    assert Path(tasks).is_relative_to(site)
