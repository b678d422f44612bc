from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from embodied_rl.deploy.contract import VERSION, DeployError
from embodied_rl.deploy.runner import make_runner
from embodied_rl.family import family_names

from .conftest import rewrite


@pytest.mark.parametrize("task", [None, *family_names()])
def test_it_is_short_and_needs_nothing_of_ours(task: str | None) -> None:
    text, known = make_runner(task)
    assert len(text.splitlines()) <= 150 and {"joint_pos", "last_action"} <= known
    names = {alias.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)}
    assert names == {"argparse", "json", "time", "collections", "pathlib", "mujoco", "numpy", "onnxruntime"}
    assert f"VERSION, HERE = {VERSION}, " in text


def test_it_runs_alone(exported: Path) -> None:
    """In a process that has no embodied_rl and no torch."""
    alone = "import sys, runpy; sys.modules['embodied_rl'] = sys.modules['torch'] = None; sys.argv[:] = sys.argv[1:]; "
    command = [sys.executable, "-c", f"{alone}runpy.run_path(sys.argv[0], run_name='__main__')", str(exported / "run_policy.py")]
    done = subprocess.run(
        [*command, "--command", "3.0", "0", "0", "--seconds", "0.2"], capture_output=True, text=True, cwd=exported.parent
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[0].startswith("velocity: [3. 0. 0.] is more than training asked for, [1. 0. 0.] is taken")
    assert re.fullmatch(r"ran 0\.2 s, \d+\.\d times as fast as real time", said[-1])


def test_it_lets_go_when_it_tilts(exported: Path, tmp_path: Path) -> None:
    import shutil

    folder = shutil.copytree(exported, tmp_path / "a")
    rewrite(folder, lambda contract: contract.update(stop_tilt=1e-4))
    done = subprocess.run([sys.executable, folder / "run_policy.py"], capture_output=True, text=True)
    assert done.returncode == 1 and re.match(r"stopped after -?\d+\.\d\d s: tilted by more than 0\.0001 rad", done.stderr)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import torch\nOBSERVATIONS = {}\n", r"deploy\.py:1: import torch: a robot has `import numpy as np` alone"),
        ("import numpy as np\n", r"deploy\.py: has no OBSERVATIONS = \{term: function\(policy, state, term\)\}"),
        ("OBSERVATIONS = [\n", r"deploy\.py:1: not valid Python: "),
    ],
)
def test_a_familys_part_that_no_robot_could_run_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "score.py").write_text("from embodied_rl.mdp.term import score\n\n@score()\nclass Some:\n    pass\n")
    (tmp_path / "deploy.py").write_text(text)
    with pytest.raises(DeployError, match=rf"^task: .*{message}"):
        make_runner(str(tmp_path))


def test_a_familys_own_part_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "score.py").write_text("from embodied_rl.mdp.term import score\n\n@score()\nclass Some:\n    pass\n")
    ball = "def ball(policy, state, term):\n    return np.ones(2)\n"
    (tmp_path / "deploy.py").write_text(f'"""Ours."""\nimport numpy as np\n\n\n{ball}\n\nOBSERVATIONS = {{"ball": ball}}\n')
    text, known = make_runner(str(tmp_path))
    assert "ball" in known and 'OBSERVATIONS |= {"ball": ball}' in text and '"""Ours."""' not in text
    assert text.count("import numpy as np") == 1
    compile(text, "run_policy.py", "exec")
