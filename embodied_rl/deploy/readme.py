"""The page that lies beside an exported policy: what is there, how well it does, and what to look at before it moves a robot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from embodied_rl import __version__
from embodied_rl.config import Page
from embodied_rl.deploy.golden import STATES


def readme(
    page: Page, contract: Mapping[str, Any], evaluated: Mapping[str, Mapping[str, Any]], rehearsed: Mapping[str, Any]
) -> str:
    """Write the README of an exported folder.

    Args:
        page: that the policy was trained on.
        contract: its contract.
        evaluated: what `embodied-rl eval` wrote, by what it is called.
        rehearsed: figures of the rehearsal, without noise.
    """
    commands = ", ".join(f"`{part['name']}` ({', '.join(part['names'])})" for part in contract["commands"]) or "nothing"
    seen = ", ".join(term["term"] for term in contract["observations"])
    first = next(iter(contract["commands"]), None)
    zeros = " ".join(["0.5", *["0.0"] * (first["size"] - 1)]) if first else ""
    command = f" --command {zeros}" if first else ""
    privileged = [term["term"] for term in contract["observations"] if term["privileged"]]
    warning = f"\n**No robot measures {', '.join(privileged)}: this policy needs an estimator.**\n" if privileged else ""
    return f"""# {page.name}: a policy for {contract["robot"]}

Exported by embodied_rl {__version__}, trained at commit {contract["git_commit"] or "unknown"}. It is asked for {commands}, and sees {seen}.
{warning}
| file | what it is |
| --- | --- |
| `policy.onnx` | the network, normalizer inside, with the contract among its metadata |
| `contract.yaml` | the same contract for people: joints, gains, observations, actions, commands, with units |
| `model.xml` | the robot and its ground as in training, for MuJoCo |
| `run_policy.py` | runs the policy in MuJoCo; a robot's SDK replaces three methods |
| `golden.npz` | what the policy saw, answered and asked of the motors in {STATES} states; whoever writes a runner compares with it |
| `rehearsal.npz` | where robots started and what they were asked for in an evaluation |
| `config.yaml` | the page that it was trained on |

    pip install numpy onnxruntime mujoco
    python run_policy.py{command}            # in MuJoCo
    embodied-rl sim2sim . --golden           # each part of run_policy.py against golden.npz
    embodied-rl sim2sim . --model theirs.xml # in another model of the robot, judged as in training

## How well it does

{_figures(evaluated, rehearsed)}

## Before it moves a robot

1. `embodied-rl sim2sim . --golden` agrees, with your `read` in place of the simulated one: the joints in the contract's order, angular velocity and orientation of `{contract["base"]}` in its own frame, quaternions wxyz, radians.
2. Hung up, motors in damping mode, move each joint by hand: the right number of `joint_pos` changes, in the right direction, and is 0 in the default pose.
3. Hung up, write the default pose: each joint goes there. `sdk_index` says where its motor stands in the SDK's arrays{_sdk(contract)}.
4. Hung up, run the policy with a command of zeros. Tilt the robot by hand beyond {contract["stop_tilt"]:g} rad: it lets go.
5. The loop runs every {1e3 * contract["control_dt"]:g} ms; the motors' own loop has the gains of the contract, torque = kp (q - position) + kd (dq - velocity).
6. On the ground, a hand on the emergency stop, small commands first. What is beyond the contract's `ranges` is bounded, and said.

| joint | sdk_index | default [rad] | kp [N m/rad] | kd [N m s/rad] | effort limit [N m] |
| --- | --- | --- | --- | --- | --- |
{_rows(contract["joints"], "default")}
{_held(contract)}"""


def _figures(evaluated: Mapping[str, Mapping[str, Any]], rehearsed: Mapping[str, Any]) -> str:
    columns = {**evaluated, **({"rehearsal, without noise": rehearsed} if rehearsed else {})}
    if not columns:
        return "It was not evaluated: `embodied-rl eval RUN`, then export it again."
    hidden = ("physics", "seed", "checkpoint", "env_steps")
    names = [name for name in dict.fromkeys(name for one in columns.values() for name in one) if name not in hidden]
    rows = [f"| {' | '.join(['', *columns])} |", f"| {' | '.join(['---'] * (len(columns) + 1))} |"]
    for name in names:
        if not name.startswith("reward/"):
            values = (one.get(name) for one in columns.values())
            rows.append(f"| {' | '.join([name, *('' if one is None else f'{one:.4g}' for one in values)])} |")
    note = "" if evaluated else "\n\n`embodied-rl eval` had not been asked; export again after it for its figures."
    return "\n".join(rows) + note


def _sdk(contract: Mapping[str, Any]) -> str:
    known = contract["joints"][0]["sdk_index"] is not None
    return "" if known else "; this robot's robot.yaml does not say it: write it there"


def _held(contract: Mapping[str, Any]) -> str:
    if not contract["held"]:
        return ""
    return f"""
## Hold these where training had them

The policy neither sees nor drives these joints: it balances the robot whose other joints are here. Elsewhere its centre of mass is elsewhere, too.

| joint | sdk_index | position [rad] | kp [N m/rad] | kd [N m s/rad] | effort limit [N m] |
| --- | --- | --- | --- | --- | --- |
{_rows(contract["held"], "position")}
"""


def _rows(joints: Sequence[Mapping[str, Any]], place: str) -> str:
    keys = ("sdk_index", place, "stiffness", "damping", "effort_limit")
    rows = ([joint["name"], *("" if joint[key] is None else f"{joint[key]:g}" for key in keys)] for joint in joints)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
