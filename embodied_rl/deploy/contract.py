"""All that a robot must know to run a policy: what stands in policy.onnx and, for people, in contract.yaml."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from embodied_rl import strict_yaml
from embodied_rl.config import Page
from embodied_rl.env import Env
from embodied_rl.errors import UserError
from embodied_rl.family import load_family
from embodied_rl.problems import ConfigError, did_you_mean, shown
from embodied_rl.strict_yaml import display

#: Rises with every change that a runner must know of.
VERSION = 2
#: The metadata of the ONNX file that holds the contract, as JSON.
KEY = "contract"


class DeployError(UserError):
    """A policy cannot be exported, or a folder holds none that can be run; one line."""


class Strict(BaseModel):
    """Every field is there, none is unknown, and nothing is guessed."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Open(BaseModel):
    """Beside these fields a term's own."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class Joint(Strict):
    """A joint; their order is that of every list of numbers per joint."""

    name: str
    sdk_index: int | None = Field(description="its motor's place in the arrays of the robot's SDK; null: robot.yaml has none")
    default: float = Field(description="position in the default pose [rad, or m]")
    stiffness: float = Field(
        ge=0.0, description="kp [N m/rad]: torque = kp (q - position) + kd (dq - velocity), within effort_limit"
    )
    damping: float = Field(ge=0.0, description="kd [N m s/rad]")
    effort_limit: float = Field(gt=0.0, description="largest torque, either way [N m]")
    velocity_limit: float | None = Field(description="largest speed, either way [rad/s]; null: not known")
    armature: float = Field(description="rotor inertia as the joint feels it in training [kg m^2]")
    friction_loss: float = Field(description="dry friction of the joint in training [N m]")
    joint_damping: float = Field(description="passive viscous damping of the joint in training, beside kd [N m s/rad]")


class Held(Strict):
    """A joint that training had welded: a robot holds it at a position, or it is another robot that the policy balances."""

    name: str
    sdk_index: int | None = Field(description="its motor's place in the arrays of the robot's SDK; null: robot.yaml has none")
    position: float = Field(description="where it is held [rad, or m]")
    stiffness: float = Field(ge=0.0, description="kp that holds it [N m/rad]")
    damping: float = Field(ge=0.0, description="kd [N m s/rad]")
    effort_limit: float = Field(gt=0.0, description="largest torque, either way [N m]")


class Action(Open):
    """What some of the network's outputs do; the outputs are shared out among the actions in their order."""

    name: str
    term: str
    joint_names: tuple[str, ...] = Field(description="the joints that it drives, an output each; others hold their default")
    target: Literal["position", "velocity"] = Field(
        description="what offset + scale clip(output) is a target of: the joint's position (dq = 0) or its velocity (kp = 0)"
    )
    offset: tuple[float, ...] = Field(description="target of an output of zero [rad, or rad/s]")
    scale: tuple[float, ...]
    clip: float = Field(description="bound of the outputs, either way; last_action is what it leaves")
    bound: tuple[float, ...] | None = Field(
        default=None, description="the network's own largest output, either way, of each joint; null: it has none"
    )


class Observation(Strict):
    """One part of what the network sees; they stand side by side in this order, each with its history."""

    name: str
    term: str
    description: str = Field(description="the value, its unit and its frame")
    command: str | None = Field(description="the command that it is made of; null: none")
    size: int = Field(description="numbers of one value")
    scale: float = Field(description="factor of the value, once it is clipped")
    clip: tuple[float, float] | None
    history: int = Field(description="how many values stand side by side, the oldest first; a reset fills all with the first")
    delay: tuple[int, int] = Field(description="least and most control steps that training held it back; a robot adds none")
    privileged: bool = Field(description="no robot measures it")


class Command(Open):
    """What the policy is asked to do."""

    name: str
    term: str
    size: int
    names: tuple[str, ...] = Field(description="each of its numbers, with its unit")
    ranges: tuple[tuple[float, float], ...] | None = Field(
        default=None, description="least and greatest of each number in training; a robot bounds what is asked of it"
    )
    rest: tuple[float, ...] | None = Field(default=None, description="a command that may be given whatever the ranges")


class Memory(Strict):
    """What a recurrent network hands to its own next call: zeros at a reset."""

    input: str
    output: str
    shape: tuple[int, ...] = Field(description="for one robot; the second dimension is that of the rows")


class Foot(Strict):
    """A foot, in the order of every list of numbers per foot."""

    name: str
    gait_offset: float | None = Field(description="share of a gait's cycle by which its own begins after the clock's")


class Contract(Strict):
    """Once every control_dt seconds: observe, ask the network, and tell the motors; SI units throughout."""

    version: int = Field(description="of this format")
    robot: str
    task: str | None
    base: str = Field(description="the body whose orientation and angular velocity are observed, in its own frame")
    base_height: float = Field(gt=0.0, description="of the base above flat ground in the default pose [m]")
    control_dt: float = Field(gt=0.0, description="the policy's period [s]")
    physics_dt: float = Field(gt=0.0, description="training's physics step [s]")
    joints: tuple[Joint, ...]
    held: tuple[Held, ...] = Field(description="joints that the policy neither sees nor drives")
    actions: tuple[Action, ...] = Field(min_length=1)
    observations: tuple[Observation, ...] = Field(min_length=1)
    commands: tuple[Command, ...]
    memory: tuple[Memory, ...]
    feet: tuple[Foot, ...]
    ground: tuple[float, float, float] = Field(
        description="friction of the ground in training: sliding [1], spinning, rolling [m]"
    )
    stop_tilt: float = Field(gt=0.0, description="beyond this angle from the vertical the runner lets go [rad]")
    git_commit: str = Field(description="of the code that trained the policy; empty: not known")


def make_contract(env: Env, memory: list[dict[str, Any]], git_commit: str = "", bound: Tensor | None = None) -> dict[str, Any]:
    """Write down what an environment of the page does around the network; plain values.

    Args:
        env: of the page that the policy was trained on, of any size.
        memory: what the network remembers, as `Memory` says.
        git_commit: of the code that trained the policy.
        bound: the network's own largest outputs, (A,); None: it has none.

    Raises:
        DeployError: an action or a command does not say what it does.
    """
    page, robot, model = env.page, env.robot.spec, env.scene.model
    (actor,) = (group for group in env.groups if group.name == "actor")
    entries = page.observations["actor"]
    dofs = [int(model.joint(name).dofadr[0]) for name in robot.joint_names]
    columns = zip(
        robot.joint_names, robot.sdk_index, robot.default_joint_pos, robot.stiffness, robot.damping, robot.effort_limit,
        robot.velocity_limit, *(getattr(model, name)[dofs] for name in ("dof_armature", "dof_frictionloss", "dof_damping")),
        strict=True,
    )  # fmt: skip
    terms = env.terms.actions
    parts = [None] * len(terms.terms) if bound is None else bound.cpu().split([len(term.joints) for _, term in terms.terms])
    made = {
        "version": VERSION,
        "robot": robot.name,
        "task": load_family(page.task).name if page.task else None,
        "base": robot.base,
        "base_height": robot.base_height,
        "control_dt": page.control_dt,
        "physics_dt": page.physics.dt,
        "joints": [dict(zip(Joint.model_fields, row, strict=True)) for row in columns],
        "held": [
            dict(zip(Held.model_fields, (name, sdk, robot.welded[name], stiffness, damping, effort), strict=True))
            for name, (stiffness, damping, effort, sdk) in robot.welded_motors.items()
        ],
        "actions": [
            _part(env, "actions", name, term) | ({} if part is None else {"bound": part})
            for (name, term), part in zip(terms.terms, parts, strict=True)
        ],
        "observations": [
            {
                "name": term.name,
                "term": entries[term.name].term,
                "description": (term.function.__doc__ or "").partition("\n")[0],
                "command": entries[term.name].params.get("command"),
                "size": term.size,
                "scale": entries[term.name].scale,
                "clip": term.clip,
                "history": term.history,
                "delay": term.delay,
                "privileged": getattr(term.function, "privileged", False),
            }
            for term in actor.terms
        ],
        "commands": [
            _part(env, "commands", name, term, size=term.size, names=term.names) for name, term in env.terms.commands.items()
        ],
        "memory": memory,
        "feet": [{"name": foot.name, "gait_offset": foot.gait_offset} for foot in robot.feet],
        "ground": env.scene.terrain.friction,
        "stop_tilt": _stop_tilt(page),
        "git_commit": git_commit,
    }
    return check(_plain(made), page.name)


def check(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a contract as it is, if it is one.

    Raises:
        DeployError: a field is missing, unknown or not what it must be, or it is of another version; one line.
    """
    if (version := given.get("version")) != VERSION:
        what = "is missing" if version is None else f"{shown(version)}, and this version of embodied_rl reads {VERSION}"
        raise DeployError(f"{where}: {KEY}.version: {what}; export the run anew")
    for path, message in _faults(given):
        raise DeployError(f"{where}: {'.'.join(map(str, (KEY, *path)))}: {message}; export the run anew")
    return dict(given)


def read_contract(path: Path) -> dict[str, Any]:
    """Read the contract inside an exported network.

    Raises:
        DeployError: there is no such file, or it holds none that this version can read.
    """
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except FileNotFoundError:
        raise DeployError(f"{display(path)}: no such file; write it with `embodied-rl export RUN`") from None
    except Exception as error:  # protobuf's DecodeError is no public class
        raise DeployError(f"{display(path)}: not an ONNX file ({type(error).__name__})") from None
    found = next((entry.value for entry in model.metadata_props if entry.key == KEY), None)
    if found is None:
        raise DeployError(f"{display(path)}: an ONNX file without a contract; write it with `embodied-rl export RUN`")
    try:
        contract = json.loads(found)
    except ValueError as error:
        raise DeployError(f"{display(path)}: its contract is not JSON ({error}); export the run anew") from None
    if not isinstance(contract, dict):
        raise DeployError(
            f"{display(path)}: its contract is {shown(contract)}, and fields by name are needed; export the run anew"
        )
    return check(contract, display(path))


def read_folder(folder: Path) -> dict[str, Any]:
    """Read the contract of an exported folder, whose contract.yaml says the same as its network.

    Raises:
        DeployError: there is none that can be read, or the two differ; one line.
    """
    contract, path = read_contract(folder / "policy.onnx"), folder / "contract.yaml"
    try:
        document = strict_yaml.read(path)
        if document.problems:
            raise ConfigError(document.problems)
        written = document.value
    except ConfigError as error:
        if not path.exists():
            return contract  # the one for people
        raise DeployError(str(error).splitlines()[0]) from None
    for place, there, here in compared(written, contract):
        said = f"{place or KEY}: {there}, and policy.onnx, which is run, has {here}"
        raise DeployError(f"{display(path)}: {said}; change the run's page and export it anew")
    return contract


def to_yaml(contract: Mapping[str, Any]) -> str:
    """Write the contract for people: lists of numbers on a line."""

    class Dumper(yaml.SafeDumper):
        pass

    def inline(dumper: yaml.SafeDumper, value: list) -> yaml.Node:
        flat = not any(isinstance(one, (dict, list)) for one in value)
        return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=flat)

    def row(dumper: yaml.SafeDumper, value: dict) -> yaml.Node:
        return dumper.represent_mapping("tag:yaml.org,2002:map", value.items(), flow_style="effort_limit" in value)

    Dumper.add_representer(list, inline)
    Dumper.add_representer(dict, row)
    return yaml.dump(dict(contract), Dumper=Dumper, sort_keys=False, width=130, allow_unicode=True)


def json_schema() -> dict[str, Any]:
    """Give the JSON Schema of contract.yaml."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | Contract.model_json_schema()


def _faults(given: Mapping[str, Any]) -> Iterator[tuple[tuple, str]]:
    """Find what is wrong, by place."""
    try:
        contract = Contract.model_validate_json(json.dumps(given))
    except ValidationError as error:
        for one in error.errors(include_url=False):
            yield tuple(one["loc"]), _explained(one, given)
        return
    joints, commands = [joint.name for joint in contract.joints], [command.name for command in contract.commands]
    motors = [joint.sdk_index for joint in contract.joints if joint.sdk_index is not None]
    if len(set(motors)) < len(motors) or len(motors) not in (0, len(joints)):
        yield ("joints",), "sdk_index: each joint has one of its own, or none has"
    for index, command in enumerate(contract.commands):
        counts = [len(part) for part in (command.names, command.ranges, command.rest) if part is not None]
        if any(count != command.size for count in counts):
            yield (
                ("commands", index),
                f"{command.name}: names, ranges and rest hold a value for each of its {command.size} numbers",
            )
        if any(low > high for low, high in command.ranges or ()):
            yield ("commands", index, "ranges"), f"{command.name}: a least number is above the greatest"
    for index, action in enumerate(contract.actions):
        for name in (name for name in action.joint_names if name not in joints):
            yield ("actions", index, "joint_names"), f"no joint {name!r}{did_you_mean(name, joints)}"
        for key in ("offset", "scale"):
            if (count := len(getattr(action, key))) != (wanted := len(action.joint_names)):
                yield ("actions", index, key), f"{count} numbers, and {wanted} joints"
    for index, term in enumerate(contract.observations):
        if term.command is not None and term.command not in commands:
            yield ("observations", index, "command"), f"no command {term.command!r}{did_you_mean(term.command, commands)}"


def _explained(error: Any, given: Any) -> str:
    """Say what one of pydantic's errors means."""
    if error["type"] == "missing":
        return "is missing"
    if error["type"] == "extra_forbidden":
        for key in error["loc"][:-1]:
            given = given[key]
        return f"no such field{did_you_mean(error['loc'][-1], _fields(error['loc']))}"
    return f"{shown(error['input'])}: {error['msg'][0].lower()}{error['msg'][1:]}"


def _fields(path: tuple) -> list[str]:
    """List the fields beside which an unknown one stands."""
    kinds = {"joints": Joint, "held": Held, "observations": Observation, "memory": Memory, "feet": Foot}
    return list((kinds[path[0]] if len(path) > 1 else Contract).model_fields)


#: Stands for what is not there.
_NOTHING = object()


def compared(one: Any, other: Any) -> list[tuple[str, str, str]]:
    """Find where two contracts differ: the place, by the names of what lists hold, and what each has there."""
    return [(".".join(place), _shown(values[0]), _shown(values[1])) for *place, values in _differing(one, other)]


def _differing(one: Any, other: Any, *place: str) -> Iterator[tuple]:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in {**other, **one}:
            yield from _differing(one.get(key, _NOTHING), other.get(key, _NOTHING), *place, str(key))
    elif isinstance(one, list) and isinstance(other, list) and any(isinstance(part, dict) for part in other):
        for index, parts in enumerate(zip_longest(one, other, fillvalue=_NOTHING)):
            named = next((part["name"] for part in reversed(parts) if isinstance(part, dict) and "name" in part), index)
            yield from _differing(*parts, *place, str(named))
    elif one != other or isinstance(one, bool) != isinstance(other, bool):
        yield (*place, (one, other))


def _shown(value: Any) -> str:
    return "nothing" if value is _NOTHING else shown(value)


def _part(env: Env, section: str, name: str, term: Any, **known: Any) -> dict[str, Any]:
    """Ask an action or a command term what a robot must know of it."""
    entry = getattr(env.page, section)[name]
    if not hasattr(term, "contract"):
        raise DeployError(
            f"{env.page.name}: {section}.{name}: {entry.term} has no contract(), so that a robot cannot know what it does; "
            "give the class one that returns its numbers by name"
        )
    return {"name": name, "term": entry.term, **known} | dict(term.contract())


def _stop_tilt(page: Page) -> float:
    """Give the angle beyond which training saw nothing, or 1 rad where no termination says one."""
    limits = [entry.params["limit"] for entry in page.terminations.values() if entry.term == "tilt"]
    return min(limits, default=1.0)


def _plain(value: Any) -> Any:
    """Write tensors as lists of the numbers that the page has: the shortest ones that float32 tells apart."""
    if isinstance(value, Tensor):
        return _plain(value.detach().cpu().numpy())
    if isinstance(value, np.ndarray):
        return _plain(value[()]) if value.ndim == 0 else [_plain(one) for one in value]
    if isinstance(value, np.floating):
        return float(str(value))
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value


if __name__ == "__main__":
    print(json.dumps(json_schema(), indent=2))
