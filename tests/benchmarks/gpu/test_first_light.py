"""The steps for a new GPU hang together, and rehearse on a CPU; see benchmarks/gpu/gpu_first_light.sh."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "benchmarks/gpu"
SCRIPT = FOLDER / "gpu_first_light.sh"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="bash and GNU's timeout")


def bash(*arguments: str, script: Path = SCRIPT, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHON": sys.executable, "DEVICE": "cpu", **variables}
    return subprocess.run(
        ["bash", str(script), *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800
    )


def test_every_step_that_help_names_is_there() -> None:
    done = bash("--help")
    assert done.returncode == 0 and subprocess.run(["bash", "-n", str(SCRIPT)]).returncode == 0
    sections = re.split(r"^(Phases|Steps|Variables)\b.*\n", done.stdout, flags=re.MULTILINE)
    named = re.findall(r"^  (\w+) ", sections[sections.index("Steps") + 1], flags=re.MULTILINE)
    source = SCRIPT.read_text(encoding="utf-8")
    listed = re.search(r"^steps=\((.*?)\)", source, flags=re.MULTILINE | re.DOTALL)
    dispatched = re.findall(r"^    (\w+)\) ", source[source.index("do_step() {") :], flags=re.MULTILINE)
    assert (
        listed
        and named == listed[1].split()
        and sorted(named) == sorted({*dispatched} - {"first", "figures", "more", "learners"})
    )
    phases = re.findall(r"for part in ([\w ]+); do", source)
    assert {step for steps in phases for step in steps.split()} <= set(named)
    assert len(named) >= 20 and "MINUTE" in done.stdout and "set -uo" not in done.stdout


def test_a_step_that_is_none_is_said_before_anything_runs(tmp_path: Path) -> None:
    done = bash("probe", "probee", OUT=str(tmp_path / "out"))
    assert done.returncode == 2 and "no such step: probee" in done.stderr and not (tmp_path / "out").exists()


def test_what_only_a_gpu_can_is_skipped_with_a_line(tmp_path: Path) -> None:
    """From a flat folder too, as the scripts lie where they were copied to."""
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in FOLDER.glob("gpu_*"):
        shutil.copy(path, flat)
    (flat / "env.sh").write_text("export SOURCED=1\n")
    done = bash("combo", "walk", "eval", "allocator", script=flat / SCRIPT.name, OUT=str(tmp_path / "out"), N="2")
    assert done.returncode == 0, done.stdout + done.stderr
    summary = (tmp_path / "out/summary.txt").read_text()
    assert summary.count("skipped: ") == 3 and re.search(r"^allocator +rc 0", summary, flags=re.MULTILINE)
    with tarfile.open(tmp_path / "out/figures.tar.gz") as figures:
        file = figures.extractfile("figures/allocator.json")
        assert file and json.load(file) == {"device": "cpu", "num_envs": 2, "skipped": "it needs a GPU"}


def test_a_step_that_fails_is_the_exit_status_and_shows_why(tmp_path: Path) -> None:
    broken = tmp_path / "broken-python"
    broken.write_text("#!/bin/sh\necho 'ValueError: it is broken'\nexit 3\n")
    broken.chmod(0o755)
    done = bash("doctor", "engine", PYTHON=str(broken), OUT=str(tmp_path / "out"))
    assert done.returncode == 1 and done.stdout.count("1:ValueError: it is broken") == 2
    assert len(re.findall(r"^(doctor|engine) +rc 3 ", (tmp_path / "out/summary.txt").read_text(), flags=re.MULTILINE)) == 2


@pytest.mark.parametrize("name", ["gpu_probe.py", "gpu_steps.py", "prebuild.py"])
def test_the_scripts_start_without_a_gpu(name: str) -> None:
    if name == "prebuild.py":
        pytest.importorskip("warp")
    done = subprocess.run([sys.executable, str(FOLDER / name), "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith(f"usage: {name}"), done.stderr


@pytest.mark.slow
def test_the_cheapest_steps_rehearse_on_a_cpu(tmp_path: Path) -> None:
    pytest.importorskip("mujoco_warp")
    done = bash("probe", "engine", "capture", "train", OUT=str(tmp_path), N="2")
    assert done.returncode == 0, done.stdout + done.stderr
    names = {"summary.txt", "logs.tar.gz", "figures.tar.gz"}
    assert {path.name for path in tmp_path.iterdir()} == names
    with tarfile.open(tmp_path / "figures.tar.gz") as figures:
        assert {f"figures/{name}.json" for name in ("probe", "engine", "capture", "train")} <= set(figures.getnames())
