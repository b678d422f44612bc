from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import mujoco
import numpy as np
import pytest
import torch

from embodied_rl.config import Page, load
from embodied_rl.deploy.contract import DeployError, read_contract
from embodied_rl.deploy.export import export
from embodied_rl.deploy.report import golden as compare
from embodied_rl.deploy.sim2sim import Export, sim2sim
from embodied_rl.learn.models import build_actor, policy_of
from embodied_rl.learn.policy import Policy
from embodied_rl.learn.sac_networks import Actor
from embodied_rl.make_env import make
from embodied_rl.vector_env import ActionSpace

from .conftest import make_policy

# A wheel that is driven by its velocity, an arm by its position, a lid that nobody drives, and looks from a file.
ROLLER = """
<mujoco>
  <compiler meshdir="looks"/>
  <asset><mesh name="shell" file="parts/shell.stl"/></asset>
  <worldbody>
    <body name="cart" pos="0 0 0.2">
      <freejoint/> <geom type="box" size="0.2 0.1 0.05" mass="3"/>
      <geom type="mesh" mesh="shell" contype="0" conaffinity="0" mass="0"/>
      <geom name="leg" size="0.03" pos="-0.2 0 -0.15"/> <site name="leg" pos="-0.2 0 -0.15"/>
      <body name="lid" pos="0 0 0.1">
        <joint name="lid" axis="0 1 0" damping="0.1"/> <geom size="0.05" pos="0.1 0 0" mass="0.1"/>
      </body>
      <body name="arm" pos="0.2 0 0">
        <joint name="arm" axis="0 1 0" damping="0.1"/> <geom size="0.03" pos="0.1 0 0" mass="0.2"/>
      </body>
      <body name="wheel" pos="0.15 0 -0.1">
        <joint name="wheel" axis="0 1 0" damping="0.1"/> <geom size="0.08" mass="0.5"/>
      </body>
    </body>
  </worldbody>
</mujoco>
"""
ROBOT = """
model: roller.xml
base: cart
base_height: 0.2
joints:
  wheel: {default: 0.0, stiffness: 3.0, damping: 0.8, effort_limit: 2.0}
  lid: {default: 0.4, stiffness: 6.0, damping: 0.3, effort_limit: 5.0}
  arm: {default: -0.3, stiffness: 9.0, damping: 0.4, effort_limit: 5.0}
feet: {leg: {geoms: [leg], site: leg}}
bodies: {}
"""
PAGE = """
robot: robot
env: {compile: false}
actions:
  reach: {term: joint_position, joints: arm, scale: 0.3, clip: 2.0}
  roll: {term: joint_velocity, joints: wheel, scale: 4.0, clip: 1.5}
observations: {actor: {base_ang_vel: {history: 2}, joint_pos: {}, joint_vel: {scale: 0.1}, last_action: {history: 3}}}
rewards: {alive: {weight: 1.0}}
terminations: {time_out: {}}
events: {reset_base: {position: 0.2}, reset_joints: {position: 0.2}}
ppo: {symmetry: none}
"""


@pytest.fixture
def roller(tmp_path: Path) -> Page:
    robot = tmp_path / "robot"
    (robot / "looks" / "parts").mkdir(parents=True)
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=np.float32) * 0.1
    faces = [(0, 2, 1), (0, 1, 3), (0, 3, 2), (1, 2, 3)]
    triangles = b"".join(struct.pack("<12fH", 0, 0, 0, *corners[list(face)].ravel(), 0) for face in faces)
    (robot / "looks" / "parts" / "shell.stl").write_bytes(b"\0" * 80 + struct.pack("<I", len(faces)) + triangles)
    (robot / "roller.xml").write_text(ROLLER)
    (robot / "robot.yaml").write_text(ROBOT)
    (tmp_path / "roller.yaml").write_text(PAGE)
    return load(str(tmp_path / "roller.yaml"))


def test_a_robot_with_meshes_wheels_and_no_command(roller: Page, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "exported"
    folder.mkdir()
    for name in ("policy.onnx", "mine.txt"):  # an older one gives place, what is not its own stays
        (folder / name).write_text(name)
    export(make_policy(roller), roller, folder)
    assert (folder / "mine.txt").read_text() == "mine.txt"
    assert (folder / "assets" / "looks_parts_shell.stl").is_file() and not (folder / "rehearsal.npz").exists()
    moved = folder.rename(tmp_path / "elsewhere")
    assert mujoco.MjModel.from_xml_path(str(moved / "model.xml")).nmesh == 1
    contract = read_contract(moved / "policy.onnx")
    assert [action["target"] for action in contract["actions"]] == ["position", "velocity"]
    assert contract["commands"] == [] and contract["joints"][0]["sdk_index"] is None
    assert compare(moved, None) == 0, capsys.readouterr().out
    with pytest.raises(DeployError, match=r"rehearsal\.npz: no such file"):
        sim2sim(Export(moved), Export(moved).target(None))
    numbers = Export(moved).numbers("golden.npz")
    # the wheel has a target of its velocity, the arm one of its position, the lid its default pose
    assert np.ptp(numbers["dq"], axis=0)[0] > 0.1 and (numbers["dq"][:, 1:] == 0.0).all()
    assert np.ptp(numbers["q"], axis=0)[2] > 0.01 and (numbers["q"][:, 1] == np.float32(0.4)).all()


def test_a_page_that_uses_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest) -> None:
    page = load(
        str(request.config.rootpath / "tests" / "everything.yaml"),
        ["env.compile=false", "score.episode_s=0.5", "score.unscored_s=0.1"],
    )
    folder = export(make_policy(page), page, tmp_path / "exported", episodes=2)
    assert compare(folder, None) == 0, capsys.readouterr().out
    result = sim2sim(Export(folder), Export(folder).target(None))
    assert result["not_judged"] == ["illegal_contact"]
    assert result["lin_vel_error"] == pytest.approx(result["rehearsed"]["lin_vel_error"], abs=0.01)


def test_a_policy_of_another_page_is_refused(page: Page, tmp_path: Path) -> None:
    import torch

    other = policy_of(build_actor({"actor": torch.zeros(1, 5)}, ActionSpace(12), page.ppo))
    with pytest.raises(DeployError, match=r"^the policy takes 5 observations, the page go2_flat gives \d+; export it with"):
        export(other, page, tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_of_an_export_that_fails(page: Page, policy: Policy, tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(DeployError, match=r"a: not written \(.*\); name another --output$"):
        export(policy, page, tmp_path / "a", episodes=0)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_actions_that_are_fed_back_stay_bounded(planted: Callable[..., Path]) -> None:
    policy = Export(planted()).policy
    for _ in range(1000):
        policy.targets(np.full(12, 1e6, dtype=np.float32))
    assert (policy.action == 0.6).all()


def test_a_squashed_policy_is_exported_with_what_its_outputs_of_one_mean(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = load("go2_flat_sac", ["env.compile=false", "sac.actor_hidden_dims=[16]", "sac.action_bound=null"])
    env = make(page, num_envs=1)
    bound = torch.tensor(env.action_space.bound)
    torch.manual_seed(0)
    actor = Actor(env.obs["actor"].shape[1], bound, page.sac)
    with torch.no_grad():
        actor.mlp[-1].weight.mul_(20.0)  # pyright: ignore  some of its outputs are at the bound
    env.close()
    folder = export(actor.eval().policy(), page, tmp_path / "exported", episodes=0)
    contract = read_contract(folder / "policy.onnx")
    assert contract["actions"][0]["bound"] == pytest.approx(bound.tolist(), rel=1e-6)
    assert compare(folder, None) == 0, capsys.readouterr().out
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "policy.onnx", providers=["CPUExecutionProvider"])
    obs = np.random.default_rng(0).normal(size=(500, actor.policy().obs_size)).astype(np.float32)
    outputs = np.asarray(session.run(None, {"obs": obs})[0])
    assert (np.abs(outputs) <= bound.numpy() * (1 + 1e-6)).all()
    assert (np.abs(outputs).max(0) > 0.9 * bound.numpy()).all()
