"""What dummies earn on a page, and what is said of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from embodied_rl import audit as module
from embodied_rl.audit import Audited, Earned, Table, audit
from embodied_rl.cli import main
from embodied_rl.config import Page, load
from embodied_rl.env import Env
from embodied_rl.errors import UserError
from embodied_rl.legs import Legs
from embodied_rl.make_env import make
from embodied_rl.mdp.part import PartState
from embodied_rl.mdp.puppet import audit_of
from embodied_rl.puppets import PRESS, Puppets
from embodied_rl.strict_yaml import display

SLOW = ["commands.velocity={lin_vel_x: [-0.2, 0.2], lin_vel_y: [0.0, 0.0], ang_vel_z: [0.0, 0.0]}"]
WIDE = ["rewards.track_linear_velocity.std=1.0", "rewards.track_angular_velocity.std=1.0"]
FEW = ["physics.num_threads=1"]
#: Whoever keeps the clock is paid, wherever it gets.
UNGATED = ["curriculum=null", "rewards.gait_phase.gated=0.0"]
#: Robots of a dummy in these tests.
ROBOTS = 4

#: Two legs of six joints each, with flat feet: hip yaw, roll and pitch, knee, ankle pitch and roll.
LEG = """
<body name="{s}_hip" pos="0 {y} 0"><joint name="{s}_yaw" axis="0 0 1" range="-1 1"/>
  <inertial pos="0 0 0" mass="1" diaginertia=".01 .01 .01"/>
 <body name="{s}_thigh"><joint name="{s}_roll" axis="1 0 0" range="-.6 .6"/><joint name="{s}_pitch" axis="0 1 0" range="-2 2"/>
  <inertial pos="0 0 -.15" mass="2" diaginertia=".02 .02 .01"/>
  <body name="{s}_shin" pos="0 0 -.3"><joint name="{s}_knee" axis="0 1 0" range="-.1 2.5"/>
   <inertial pos="0 0 -.15" mass="1" diaginertia=".02 .02 .01"/>
   <body name="{s}_ankle" pos="0 0 -.3"><joint name="{s}_tip" axis="0 1 0" range="-1 1"/>
    <joint name="{s}_side" axis="1 0 0" range="-.5 .5"/>
    <geom name="{s}_sole" type="box" size=".1 .04 .01" pos=".03 0 -.04" mass=".5"/><site name="{s}_site" pos="0 0 -.04"/>
   </body></body></body></body>"""
JOINTS = {"yaw": 0.0, "roll": 0.0, "pitch": -0.2, "knee": 0.4, "tip": -0.2, "side": 0.0}


@pytest.fixture
def biped(tmp_path: Path) -> Path:
    """A page of a robot on two legs."""
    (tmp_path / "biped").mkdir()
    legs = "".join(LEG.format(s=side, y=y) for side, y in (("left", 0.1), ("right", -0.1)))
    trunk = f'<body name="trunk" pos="0 0 1"><freejoint/><geom type="box" size=".1 .15 .2" pos="0 0 .2" mass="8"/>{legs}</body>'
    (tmp_path / "biped" / "biped.xml").write_text(f'<mujoco><compiler angle="radian"/><worldbody>{trunk}</worldbody></mujoco>')
    joints = "".join(f"  {s}_{name}: {{default: {at}, motor: leg}}\n" for s in ("left", "right") for name, at in JOINTS.items())
    feet = "".join(
        f"  {s}: {{geoms: [{s}_sole], site: {s}_site, gait_offset: {at}}}\n" for s, at in (("left", 0.0), ("right", 0.5))
    )
    (tmp_path / "biped" / "robot.yaml").write_text(
        "name: biped\nmodel: biped.xml\nbase: trunk\nbase_height: 0.638\n"
        "motors: {leg: {stiffness: 80.0, damping: 3.0, effort_limit: 80.0}}\n"
        f"joints:\n{joints}feet:\n{feet}mirror: {{left: right}}\n"
    )
    (tmp_path / "biped.yaml").write_text(
        "extends: go2_flat.yaml\nrobot: biped\nppo: {symmetry: none}\nterminations: {height: {minimum: 0.4}}\n"
        "commands: {velocity: {lin_vel_x: [-0.5, 0.8], lin_vel_y: [-0.3, 0.3], ang_vel_z: [-0.8, 0.8], gait_frequency: 1.25}}\n"
    )
    return tmp_path / "biped.yaml"


@pytest.fixture
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few robots, for a short while."""
    monkeypatch.setattr(module, "ROBOTS", ROBOTS)
    monkeypatch.setattr(module, "UNCOUNTED_S", 0.5)
    monkeypatch.setattr(module, "COUNTED_S", 0.5)


@pytest.fixture
def led() -> Iterator[Callable[[Page, int], tuple[Env, Puppets, list[str]]]]:
    """Makes a page's environment of a few robots for each of its puppets, which are led for so many steps."""
    made: list[Env] = []

    def lead(page: Page, steps: int) -> tuple[Env, Puppets, list[str]]:
        family = audit_of(page)
        assert family is not None
        tried = module._as_tried(page, family.asked(page)["moving commands"])
        env = make(tried, env_ids=torch.arange(ROBOTS).repeat(len(family.PUPPETS)))
        made.append(env)
        scripts = [one.script for one in family.PUPPETS.values()]
        puppets = Puppets(env, Legs(env.scene, env.robot), scripts, 0, ROBOTS)
        go(env, puppets, steps)
        return env, puppets, list(family.PUPPETS)

    yield lead
    for env in made:
        env.close()


def go(env: Env, puppets: Puppets, steps: int) -> None:
    with torch.no_grad():
        for _ in range(steps):
            env.step(puppets.act(torch.zeros(env.num_envs, env.num_actions)))


def of(name: str, names: list[str], values: torch.Tensor) -> torch.Tensor:
    """The rows of a puppet."""
    return values[names.index(name) * ROBOTS :][:ROBOTS]


@pytest.mark.parametrize("legs", ["go2", "biped"])
def test_puppets_do_what_they_shall(legs: str, biped: Path, led: Callable) -> None:
    env, puppets, names = led(load("go2_flat" if legs == "go2" else biped, FEW), 40)  # a cycle of the biped's clock
    puppets.misses.zero_()
    command = env.terms.commands["velocity"]
    for _ in range(40):
        now = (env.buffers["episode_length"] + 1) * env.step_dt
        go(env, puppets, 1)
        robot = PartState(env.robot, env.physics)
        off = torch.stack(((robot.lin_vel_yaw - command.command[:, :2]).norm(dim=-1), robot.yaw_rate - command.command[:, 2]), -1)
        assert float(of("walks", names, off).abs().max()) < 1e-4
        assert not of("marches", names, robot.base_lin_vel_w).any() and not of("one leg", names, env.physics.qvel)[:, :6].any()
        cycle = (now[:, None] * float(command.gait_frequency) + env.robot.gait_offset) % 1.0
        either = ((cycle - 0.55).abs() < 1e-4) | ((cycle - 0.5).abs() > 0.4999)  # rounding says who stands there
        stands = robot.foot_contact > 0
        for name in ("marches", "walks"):
            assert of(name, names, (stands == (cycle < 0.55)) | either).all()
        assert of("one leg", names, stands)[:, :-1].all() and not of("one leg", names, stands)[:, -1].any()
        slip = robot.foot_lin_vel_w.norm(dim=-1) * stands
        assert float(slip.max()) < 0.03 and float(robot.foot_underside_w.min()) > -1.5 * PRESS
    assert float(puppets.misses.max()) < 2e-3 and not env.buffers["terminated"].any()


@pytest.mark.parametrize("legs", ["go2", "biped"])
def test_motors_bear_the_weight(legs: str, biped: Path) -> None:
    """Let go, a puppet that stands does not sink: its actions are those that hold it."""
    page = load("go2_flat", FEW) if legs == "go2" else load(biped, FEW)
    env = make(module._as_tried(page, []), env_ids=torch.arange(1))
    puppets = Puppets(env, Legs(env.scene, env.robot), [module.stands], 0, 1)
    go(env, puppets, 3)
    held, height = env.buffers["actions"].clone(), float(env.physics.qpos[0, 2])
    env.physics = puppets._physics
    env.step(held)
    assert abs(float(env.physics.qpos[0, 2]) - height) < 1e-3  # who falls freely falls 2 mm
    assert abs(float(env.physics.qvel[0, 2])) < 0.05
    env.close()


@pytest.fixture(scope="module")
def wide() -> Audited:
    """A page on which standing pays: slow commands, and a sigma that does not tell them from none."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("ROBOTS", ROBOTS), ("UNCOUNTED_S", 0.5), ("COUNTED_S", 0.5)):
            patch.setattr(module, name, value)
        return audit(load("go2_flat", [*FEW, *SLOW, *WIDE, *UNGATED, "rewards.alive={weight: 0.25}"]))


def test_a_page_that_pays_standing_is_named(wide: Audited) -> None:
    table = wide.tables["moving commands"]
    assert list(wide.tables) == ["moving commands"] and list(table) == [
        "stands",
        "marches",
        "one leg",
        "random",
        "falls",
        "walks",
    ]
    share = 100.0 * table["stands"].total / table["walks"].total
    assert share > 75.0
    assert f"standing earns {share:.0f} % of what a walker would under moving commands" in wide.warnings
    assert any(line.startswith("marching in place earns ") for line in wide.warnings)


def test_terms_that_pay_standing_are_named(wide: Audited) -> None:
    paid = [line.split()[0] for line in wide.warnings if " pays standing " in line]
    assert paid == ["track_linear_velocity", "track_angular_velocity", "pose", "alive"]  # and the clock does not
    assert "alive pays standing 100 % of what a walker gets under moving commands" in wide.warnings


def test_the_table(wide: Audited) -> None:
    head, *rows = [line for line in wide.lines() if not line.startswith("warning")]
    assert " ".join(head.split()) == "a second, moving commands stands marches one leg random falls walks"
    named = {row.split()[0]: row.split()[1:] for row in rows if row}
    assert named["alive"] == ["0.25"] * 6 and named["gait_phase"][1] == named["gait_phase"][5] == "2.00"
    assert set(load("go2_flat").rewards) < set(named) and any(row.startswith("before the floor of 0 ") for row in rows)
    for one in wide.tables["moving commands"].values():
        assert one.before_floor == pytest.approx(sum(one.terms.values()), abs=1e-4) and one.total >= one.before_floor - 1e-4


def test_episodes(wide: Audited) -> None:
    table = wide.tables["moving commands"]
    assert table["stands"].lasts == table["walks"].lasts == 20.0
    assert table["falls"].lasts == pytest.approx(0.02) and -5.0 < table["falls"].episode < -4.8


def test_go2_flat(briefly: None) -> None:
    found = audit(load("go2_flat", FEW))
    moving, slow = found.tables["moving commands"], found.tables["slow commands"]
    for table in (moving, slow):
        walker = table["walks"]
        assert walker.terms["track_linear_velocity"] == pytest.approx(2.0, abs=1e-3)
        assert walker.terms["track_angular_velocity"] == pytest.approx(1.0, abs=1e-3) and walker.total > 5.3
        assert table["stands"].total < table["marches"].total < walker.total and table["random"].total < table["stands"].total
    assert slow["stands"].total > moving["stands"].total
    # once its gait is paid to who gets somewhere alone, as its curriculum ends, nobody is paid for being there
    dummies = [line for line in found.warnings if line.startswith(("standing earns ", "marching in place earns "))]
    assert not any("under moving commands" in line for line in dummies)
    assert found.notes == []
    said = audit(load("go2_flat", [*FEW, *UNGATED])).warnings
    assert "under slow commands" in next(line for line in said if line.startswith("standing earns "))
    assert any(line.startswith("marching in place earns ") and "under moving commands" in line for line in said)


def test_a_puppet_that_the_page_ends_is_told(briefly: None) -> None:
    found = audit(load("go2_flat", [*FEW, *SLOW, "terminations.height.minimum=0.4", "terminations.tilt=null"]))
    assert found.warnings[:2] == ["stands: ends by height after 0.02 s", "marches: ends by height after 0.02 s"]


def test_what_does_not_end_is_told(briefly: None) -> None:
    found = audit(load("go2_flat", [*FEW, *SLOW, "terminations={time_out: {}, height: null, tilt: null}"]))
    assert found.notes == ["falls: nothing ends the episode of a robot on its back"]


def test_a_family_without_puppets(briefly: None) -> None:
    found = audit(load("go2_stand", FEW))
    assert list(found.tables["all commands"]) == ["stands", "random", "falls"]
    assert found.notes == ["go2_stand: its task family has no audit.py"] and found.warnings == []
    assert found.tables["all commands"]["stands"].terms["feet_down"] == pytest.approx(0.5)


def test_a_page_without_a_family(briefly: None) -> None:
    assert audit(load("go2_stand", [*FEW, "task=null", "score=null"])).notes == ["go2_stand: task: it names no family"]


def without(tmp_path: Path, robot: str) -> Page:
    """A page whose robot lacks something of its feet, and that says nothing of them."""
    (tmp_path / "lame").mkdir()
    (tmp_path / "lame" / "robot.yaml").write_text(f"extends: go2\n{robot}\n")
    names = (
        "rewards.gait_phase",
        "rewards.foot_clearance",
        *(f"observations.{group}.gait_phase" for group in ("actor", "critic")),
    )
    names = (*names, "observations.critic.foot_contact", "observations.critic.foot_friction", "curriculum")
    (tmp_path / "page.yaml").write_text("extends: go2_flat.yaml\nrobot: lame\nppo: {symmetry: none}\n")
    return load(tmp_path / "page.yaml", [*FEW, *SLOW, *(f"{name}=null" for name in names)])


def test_a_robot_without_a_gait(briefly: None, tmp_path: Path) -> None:
    found = audit(
        without(tmp_path, f"feet: {{{', '.join(f'{leg}: {{gait_offset: null}}' for leg in ('FL', 'FR', 'RL', 'RR'))}}}")
    )
    assert list(found.tables["moving commands"]) == ["stands", "one leg", "random", "falls"]
    assert [line.partition(": /")[0] for line in found.notes] == ["marches: left out", "walks: left out"]
    assert all("give each a gait_offset" in line for line in found.notes) and found.warnings == []


def test_a_robot_without_feet(briefly: None, tmp_path: Path) -> None:
    found = audit(without(tmp_path, "feet: null\nmirror: null"))
    assert list(found.tables["moving commands"]) == ["stands", "random", "falls"]
    assert found.notes == [f"{display(tmp_path / 'lame' / 'robot.yaml')}: feet: none that could be led: no feet are led"]


def test_on_a_plane(briefly: None) -> None:
    """Rough ground is left out, and nothing random happens."""
    tried = module._as_tried(load("go2_rough"), [])
    assert not tried.patches and not tried.events


def test_curricula_are_at_their_end() -> None:
    ramp = "curriculum.ramp={term: linear, parameter: rewards.pose.weight, start: [0.0], end: [4.0], iterations: [0, 9999]}"
    wider = "{term: earned, parameter: commands.velocity.lin_vel_x, start: [0.0, 0.1], end: [-2.0, 2.0], share: Tracking/lin_vel}"
    page = module._as_it_ends(load("go2_flat", [ramp, f"curriculum.wider={wider}"]))
    assert page.rewards["pose"].weight == 4.0 and page.commands["velocity"].params["lin_vel_x"] == (-2.0, 2.0)
    assert not page.curriculum


def test_environments_of_others_are_refused() -> None:
    with pytest.raises(UserError, match=r"^pool_ant: env\.source: gymnasium:Ant-v5: .* audit takes pages with a robot$"):
        audit(load("pool_ant"))


WORDS = {"stands": "standing", "walks": "a walker"}


def table(**totals: float) -> Table:
    """Dummies that earn so much by a term `pay`; `falls` by its episode."""
    return {name: Earned({"pay": total}, total, total, 0.02 if name == "falls" else 20.0) for name, total in totals.items()}


def said(*tables: Table) -> list[str]:
    return [*module._warnings(dict(zip(("moving commands", "slow commands"), tables, strict=False)), WORDS, "walks")]


def test_nothing_is_said_of_a_page_that_pays_walking() -> None:
    assert (
        said(table(stands=0.5, random=0.1, falls=-250.0, walks=1.0), table(stands=0.6, random=0.1, falls=-1.0, walks=1.0)) == []
    )


def test_both_ways_of_asking_are_tried() -> None:
    good, bad = table(stands=0.5, random=0.1, falls=-250.0, walks=1.0), table(stands=0.7, random=0.1, falls=-250.0, walks=1.0)
    worse = table(stands=0.9, random=0.1, falls=-250.0, walks=1.0)
    assert said(good, bad)[0] == "standing earns 70 % of what a walker would under slow commands"
    assert said(bad, good)[0] == "standing earns 70 % of what a walker would under moving commands"
    assert said(bad, worse) == [
        "standing earns 90 % of what a walker would under slow commands, 70 % under moving commands",
        "pay pays standing 90 % of what a walker gets under slow commands, 70 % under moving commands",
    ]


def test_falling_at_once_is_told() -> None:
    found = said(table(stands=-1.0, random=-2.0, falls=-250.0, walks=1.0))
    assert found == [
        "falling at once is better than standing and acting at random (falls -5.00, stands -20.00, random -40.00 an episode)"
    ]


def test_a_page_that_punishes_walking_is_told() -> None:
    others = "standing -0.20, acting at random 0.30"
    found = said(table(stands=-0.2, random=0.3, falls=-250.0, walks=0.2))
    assert found == [f"a walker earns 0.20 a second under moving commands ({others}): the page punishes it"]


def test_the_command(briefly: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "go2_flat", *FEW, *SLOW, *WIDE, "--json", str(tmp_path / "found.json")]) == 0
    out = capsys.readouterr().out
    figures = json.loads((tmp_path / "found.json").read_text())
    assert "warning: standing earns " in out and figures["warnings"]
    assert figures["moving commands"]["walks"]["reward/total"] > figures["moving commands"]["stands"]["reward/total"]


@pytest.mark.slow
def test_what_pays_standing_is_named_before_during_and_after_a_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """One page with a wide sigma and slow commands: by `audit`, by `train`, and by `eval` of what was trained."""
    (tmp_path / "wide.yaml").write_text(
        "extends: go2_flat.yaml\nenv: {num_envs: 128}\ntrain: {iterations: 100}\ncurriculum: null\n"
        "commands: {velocity: {lin_vel_x: [-0.2, 0.2], lin_vel_y: [0.0, 0.0], ang_vel_z: [0.0, 0.0]}}\n"
        "rewards:\n  track_linear_velocity: {std: 1.0}\n  track_angular_velocity: {std: 1.0}\n"
        "  gait_phase: null\n  foot_clearance: null\n"
        "score: {lin_vel_x: [-0.2, 0.2], lin_vel_y: [0.0, 0.0], ang_vel_z: [0.0, 0.0]}\n"
    )
    page, run = str(tmp_path / "wide.yaml"), str(tmp_path / "run")
    main(["audit", page])
    assert "standing earns " in capsys.readouterr().out
    main(["train", page, "--run-dir", run])
    assert any("it pays for something else; `embodied-rl audit wide` says" in line for line in caplog.messages)
    capsys.readouterr()
    main(["eval", run])
    assert "stands where it should walk" in capsys.readouterr().out
