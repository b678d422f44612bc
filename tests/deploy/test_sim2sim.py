from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embodied_rl.cli import main
from embodied_rl.config import Page, override
from embodied_rl.deploy.contract import DeployError
from embodied_rl.deploy.export import export as write
from embodied_rl.deploy.report import golden as compare
from embodied_rl.deploy.sim2sim import Export, sim2sim
from embodied_rl.paths import shipped

from .conftest import make_policy, rewrite

GO2 = shipped("robots") / "go2" / "go2.xml"


def test_plain_mujoco_does_what_the_environment_did(exported: Path) -> None:
    """The same starts and commands, no noise, the same physics: the same figures."""
    export = Export(exported)
    result = sim2sim(export, export.target(None))
    rehearsed = result["rehearsed"]
    assert result["episodes"] == 4 and result["fall_rate"] == rehearsed["fall_rate"] and not result["passed"]
    for name in ("lin_vel_error", "ang_vel_error", "cost_of_transport", "mean_episode_s"):
        assert result[name] == pytest.approx(rehearsed[name], abs=2e-3), name
    assert result["not_judged"] == []


def test_fewer_episodes_are_the_first_of_them(exported: Path) -> None:
    export = Export(exported)
    assert sim2sim(export, export.target(None), episodes=2)["episodes"] == 2


def test_the_command_line(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    film, figures = tmp_path / "film.mp4", tmp_path / "figures.json"
    assert (
        main(["sim2sim", str(exported), "--model", str(GO2), "--video", str(film), "--json", str(figures), "--episodes", "1"])
        == 0
    )
    said = capsys.readouterr().out
    assert "the file has no ground; the contract's plane was added" in said
    assert re.search(r"^lin_vel_error +\d\.\d+ +\d\.\d+   \(limit 0\.2\)$", said, re.MULTILINE)  # another model: reference limits
    assert said.rstrip().endswith("it does not walk yet") and film.stat().st_size > 10_000
    assert json.loads(figures.read_text())["episodes"] == 1
    assert main(["sim2sim", str(exported), "--golden"]) == 0
    assert main(["sim2sim", str(exported), "--keep-motors"]) == 2
    assert "--keep-motors: training's own model has no motors" in capsys.readouterr().err
    assert main(["sim2sim", str(exported), "--golden", "--keep-motors", "--model", str(GO2)]) == 2
    assert "--keep-motors: --golden compares numbers and drives nothing" in capsys.readouterr().err
    assert main(["sim2sim", str(tmp_path)]) == 2
    assert "policy.onnx: no such file; write it with `embodied-rl export RUN`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda c: c["actions"][0].update({key: c["actions"][0][key][:11] for key in ("joint_names", "offset", "scale")}),
            "actions: the network has 12 numbers, and by the contract 11 numbers",
        ),
        (lambda c: c["observations"][4].update(history=2), "obs: the network has 71 numbers, and by the contract 59 numbers"),
        (
            lambda c: c["memory"].append({"input": "h", "output": "next_h", "shape": [1, 1, 8]}),
            "h: the network has none, and by the contract 8 numbers",
        ),
    ],
)
def test_a_contract_of_another_network_is_named(
    planted: Callable[..., Path], change: Callable[[dict[str, Any]], Any], said: str
) -> None:
    with pytest.raises(DeployError, match=rf"policy\.onnx: {said}; export the run anew$"):
        Export(planted(contract=change))


def test_a_runner_that_lacks_something_is_named(planted: Callable[..., Path]) -> None:
    folder = planted(runner=("class Simulation:", "class Robot:"))
    with pytest.raises(DeployError, match=r"run_policy\.py: has no Simulation; export the run anew for one that has$"):
        Export(folder)


def test_what_a_simulation_alone_knows_is_there_and_warned_of(
    page: Page, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen = override(page, ["observations.actor.base_lin_vel={}", "observations.actor.base_height={scale: 2.0}"])
    folder = write(make_policy(seen), seen, tmp_path / "a", episodes=0)
    assert "go2_flat: observations.actor.base_lin_vel: no robot measures base_lin_vel; leave it to the critic" in caplog.text
    assert compare(folder, None) == 0
    assert (
        "**No robot measures base_lin_vel, base_height: this policy needs an estimator.**" in (folder / "README.md").read_text()
    )
    with pytest.raises(DeployError, match=r"rehearsal\.npz: no such file"):
        sim2sim(Export(folder), Export(folder).target(None))


def test_a_term_of_ones_own_is_written_into_the_runner(page: Page, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "own.py").write_text(
        "from embodied_rl.mdp.term import observation\n\n@observation(mirror='scalar')\ndef battery(env):\n"
        "    'Voltage, (N, 1).'\n    return env.robot.joint_pos[:, :1] * 0.0 + 24.0\n"
    )
    own = override(page, [f"terms=[{tmp_path / 'own.py'}]", "observations.actor.battery={}"])
    folder = write(make_policy(own), own, tmp_path / "a", episodes=1)
    assert "observations.actor.battery: run_policy.py does not know battery; write it into its OBSERVATIONS" in caplog.text
    with pytest.raises(DeployError, match=r"no 'battery' in OBSERVATIONS; write there how your robot knows it$"):
        Export(folder)
    runner = folder / "run_policy.py"
    runner.write_text(
        runner.read_text().replace('    "joint_vel":', '    "battery": lambda policy, state, term: 24.0,\n    "joint_vel":')
    )
    assert compare(folder, None) == 0
    edited = runner.read_text()
    write(make_policy(own), own, folder, episodes=1)
    assert runner.read_text() == edited and "run_policy.py: was edited, and stays as it is" in caplog.text
    assert sim2sim(Export(folder), Export(folder).target(None))["episodes"] == 1


def test_a_run_slowed_down_does_the_same(exported: Path, planted: Callable[..., Path]) -> None:
    """Clocks count calls, not seconds of the wall."""
    slow = planted(runner=("        mujoco.mj_step(", "        time.sleep(0.001)\n        mujoco.mj_step("))
    one, other = (sim2sim(export, export.target(None), episodes=1) for export in (Export(exported), Export(slow)))
    assert one == other


def test_a_command_beyond_training_is_bounded_and_said_once(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = Export(exported).policy
    state = {"quat": np.array([1.0, 0, 0, 0]), "ang_vel": np.zeros(3), "joint_pos": policy.default, "joint_vel": np.zeros(12)}
    for asked in ([2.0, 0.0, -3.0], [2.0, 0.0, -3.0], [0.5, 0.0, 0.0], [0.0, 0.0, 0.0]):
        policy(state, {"velocity": asked})
    assert capsys.readouterr().out == (
        "velocity: [ 2.  0. -3.] is more than training asked for, [ 1.  0. -1.] is taken (vx [m/s], vy [m/s], wz [rad/s])\n"
    )


def test_standing_is_allowed_whatever_the_ranges(planted: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = planted(contract=lambda c: c["commands"][0].update(ranges=[[0.5, 1.0], [-0.5, 0.5], [-1.0, 1.0]]))
    policy = Export(folder).policy
    state = {"quat": np.array([1.0, 0, 0, 0]), "ang_vel": np.zeros(3), "joint_pos": policy.default, "joint_vel": np.zeros(12)}
    policy.observe(state, {"velocity": [0.0, 0.0, 0.0]})
    assert policy.command["velocity"].tolist() == [0.0, 0.0, 0.0] and capsys.readouterr().out == ""
    rewrite(folder, lambda c: c["commands"][0].pop("rest"))
    policy = Export(folder).policy
    policy.observe(state, {"velocity": [0.0, 0.0, 0.0]})
    assert policy.command["velocity"].tolist() == [0.5, 0.0, 0.0]
