"""What a file has under a term's name, and the parts of a class: told in one line before anything is learned."""

from __future__ import annotations

from pathlib import Path

import pytest

from embodied_rl.config import load
from embodied_rl.errors import UserError
from embodied_rl.inspection import inspect

HEAD = """
import torch
from embodied_rl.mdp.state import State
from embodied_rl.mdp.term import action, command, event, observation, reward, termination

"""
RIGHT = "@reward()\ndef mine(env, *, k: float = 1.0): return k * env.actions[:, 0]\n"
OF_CLASS = "@reward()\nclass mine:\n    {body}\n    def __call__(self, env): return env.actions[:, 0]\n"
COMMAND = """
from embodied_rl.mdp.totals import Share

@command()
class mine:
    size, names = 1, ("x [m]",)
    state = {{"command": State((1,))}}
    def resample(self, env, done): ...
    def hold(self, values): ...
    def contract(self): return {{}}
    {body}
"""
ACTION = """
@action(mirror="joints")
class mine:
    control = "position"
    def __init__(self, robot):
        self.robot, self.joints, self.clip = robot, range({joints}), torch.tensor(1.0)
    def controls(self, env, actions, previous_actions):
        return {controls}
    def contract(self): return {{}}
"""
ERRORS = "def errors(self, env): return {body}"
SHARES = ERRORS.format(body="{{}}") + "\n    def shares(self, {arguments}): return {body}"


def refused(source: str, folder: Path, *entries: str) -> str:
    (folder / "own.py").write_text(HEAD + source)
    page = load(
        "go2_flat", [f"terms=[{folder / 'own.py'}]", "env.num_envs=16", "env.compile=false", "ppo.symmetry=none", *entries]
    )
    with pytest.raises(UserError) as error:
        inspect(page)
    return str(error.value)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (RIGHT + "mine = 3\n", "own.py:7: mine: declared a reward, and once the file is imported it stands for an int"),
        (RIGHT + "def mine(env): ...\n", "declared a reward, and once the file is imported it stands for a function that no dec"),
        (
            RIGHT + "@termination()\ndef mine(env): ...\n",
            "own.py:7: mine: declared a reward, and once the file is imported it stands for a t",
        ),
        (RIGHT + "del mine\n", "it stands for nothing"),
        ("bare = lambda f: lambda env, **k: f(env, **k)\n@bare\n" + RIGHT, "@reward() stands above all other decorators"),
        ("reward = lambda: lambda f: f\n" + RIGHT, "it stands for a function that no decorator declares"),
        ("@reward()\ndef mine(env):\n    yield env.actions[:, 0]\n", "own.py:7: mine: yields; a term returns its value"),
        (
            "class A:\n    def __init__(self, robot, *, k: float = 1.0): ...\n    def __call__(self, env): ...\n@reward()\n"
            "class mine(A): ...\n",
            "own.py:10: mine: k: the parameters of a term are those that are written in its own __init__",
        ),
        ("@reward()\nclass mine: ...\n", "rewards.mine: mine lacks __call__(self, env); a reward has it"),
        (OF_CLASS.format(body="def update(self): ..."), "rewards.mine: update is called with (env); write def update(self, env)"),
        (OF_CLASS.format(body="def resample(self, env): ..."), "write def resample(self, env, done)"),
        (OF_CLASS.format(body="def settle(self, env, done): ..."), "write def settle(self, env)"),
        (OF_CLASS.format(body="state = ['x']"), "rewards.mine: its state is a list; write state = {NAME: State()}"),
        (OF_CLASS.format(body="state = {'x': torch.zeros(3)}"), "its state 'x' is a Tensor; write {'x': State(...)}"),
        (
            OF_CLASS.format(body="state = {'x': State(3)}"),
            "its state 'x' has the shape 3, no tuple; write State((3,)) for (N, 3)",
        ),
        (OF_CLASS.format(body="state = {'x': State(fresh='one')}"), "its state 'x': no fresh='one'; allowed: 'zero', 'keep'"),
        ("N = 'foot_contact'\n@reward(needs=N)\ndef mine(env): ...\n", "needs='foot_contact' is no tuple of strings"),
    ],
)
def test_a_reward_that_is_none(source: str, said: str, tmp_path: Path) -> None:
    assert said in refused(source, tmp_path, "rewards.mine={weight: 1.0}")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("@event()\ndef mine(env, draft): ...\n", "events.mine: has no mode; write @event(mode=...) with one of startup, reset,"),
        ("@event(mode='restart')\ndef mine(env, draft): ...\n", "events.mine: no mode 'restart'; did you mean 'startup'?"),
        ("@event(mode='reset', fields=('geom_frictio',))\ndef mine(env, draft): ...\n", "did you mean 'geom_friction'?"),
        ("@event(mode='interval')\ndef mine(env, draft): ...\n", "events.mine: a term returns bool (16,), got None"),
        (
            "@event(mode='interval')\ndef mine(env, draft): return True\n",
            "events.mine: a term returns bool (16,), got True, a bool",
        ),
        (
            "@event(mode='reset')\ndef mine(env, draft): draft.qpos = draft.qpos[:, :3]\n",
            "the draft's qpos is (16, 19), and the event leaves (16, 3)",
        ),
        (
            "@event(mode='startup')\ndef mine(env, draft): draft.qpos[:] = 0.0\n",
            "events.mine: mode 'startup' draws numbers of the m",
        ),
    ],
)
def test_an_event_that_is_none(source: str, said: str, tmp_path: Path) -> None:
    assert said in refused(source, tmp_path, "events.mine={}")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (COMMAND.format(body=""), "commands.mine: mine lacks errors(self, env); a command has it"),
        (
            COMMAND.format(body=ERRORS.format(body="{'e': self.command}")),
            "commands.mine.errors['e']: a term returns float32 (16,), got float32 (16, 1)",
        ),
        (COMMAND.format(body=ERRORS.format(body="None")), "commands.mine: errors returns a NoneType"),
        (
            COMMAND.format(body=ERRORS.format(body="{'lin_vel_error': self.command[:, 0]}")),
            "commands.mine: another command has an error 'lin_vel_error'",
        ),
        (
            COMMAND.format(body=ERRORS.format(body="{}")).replace("size, names = 1", "size, names = 3"),
            "commands.mine: its size is 3, its command has 1",
        ),
        (COMMAND.format(body=SHARES.format(arguments="env", body="1")), "commands.mine: shares returns a list of Share(names"),
        (COMMAND.format(body=SHARES.format(arguments="env", body="[('a', 1, 2)]")), "shares returns a list of Share(names"),
        (
            COMMAND.format(body=SHARES.format(arguments="env", body="[Share(['a'], self.command, self.command)]")),
            "commands.mine.shares: number: a term returns float32 (16,), got float32 (16, 1)",
        ),
        (
            COMMAND.format(
                body=SHARES.format(arguments="env", body="[Share(['a', 'b'], self.command[:, 0], self.command[:, 0])]")
            ),
            "commands.mine.shares: 2 names, and no `at`",
        ),
        (
            COMMAND.format(
                body=SHARES.format(arguments="env", body="[Share(['Tracking/lin_vel'], self.command[:, 0], self.command[:, 0])]")
            ),
            "two commands or events have a share 'Tracking/lin_vel'",
        ),
        (COMMAND.format(body=SHARES.format(arguments="", body="1")), "commands.mine: shares is called with (env)"),
        (
            COMMAND.format(
                body=SHARES.format(arguments="env", body="[Share(['Train/mean_reward'], self.command[:, 0], self.command[:, 0])]")
            ),
            "commands.mine.shares: 'Train/mean_reward' is a name of the trainer's own; take another than Train/",
        ),
        (
            COMMAND.format(body=ERRORS.format(body="{}") + "\n    def update(self, env): env.draw(1)"),
            "draws more random numbers than",
        ),
    ],
)
def test_a_command_that_is_none(source: str, said: str, tmp_path: Path) -> None:
    assert said in refused(source, tmp_path, "commands.mine={}")


@pytest.mark.parametrize(
    ("joints", "controls", "said"),
    [
        (13, "actions", "actions.mine: its joints are [0, 1, 2,"),
        (12, "self.robot.default_joint_pos", "actions.mine.controls: returns float32 (16, 12) or (16, 2, 12), got float32 (12,)"),
        (12, "None", "actions.mine.controls: returns float32 (16, 12) or (16, 2, 12), got None"),
    ],
)
def test_an_action_that_is_none(joints: int, controls: str, said: str, tmp_path: Path) -> None:
    source = ACTION.format(joints=joints, controls=controls)
    assert said in refused(source, tmp_path, "actions={joint_position: null, mine: {}}")
