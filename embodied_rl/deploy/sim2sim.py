"""An exported policy in plain MuJoCo: driven by its own runner, in training's model or in any other one of the robot."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import io
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import torch

from embodied_rl.config import Page, load
from embodied_rl.deploy import golden
from embodied_rl.deploy.contract import DeployError, compared, read_folder
from embodied_rl.deploy.place import base_state, place
from embodied_rl.deploy.rehearsal import apply_fields
from embodied_rl.deploy.stage import Stage
from embodied_rl.deploy.target import Target, check_time, fit, hang
from embodied_rl.errors import in_short, last_in
from embodied_rl.learn.evaluate import SEEDS, evaluation_page
from embodied_rl.mdp.demo import demo_of
from embodied_rl.mdp.score import figures_of, judged, score_of
from embodied_rl.problems import did_you_mean
from embodied_rl.strict_yaml import display

#: What a simulation knows and no robot: of terms, the name in the runner's state.
_PRIVILEGED = {"base_lin_vel": "lin_vel", "base_height": "height"}
#: What golden.npz and rehearsal.npz hold at least.
_GOLDEN = (
    *("contract", "joints", "mirror", "reset", "qpos", "qvel", "actions", "bare_actions", "q", "dq"),
    *("fine/step", "fine/qpos", "fine/qvel", "fine/q", "fine/dq", "fine/torque", "motion/step", "motion/time"),
)
_REHEARSAL = ("contract", "qpos", "qvel", "figures")
#: A joint that ends farther from its target than this, hung up and asked for nothing, is told of [rad].
_HANGS = 0.2


class Export:
    """An exported folder, opened.

    Args:
        folder: what `embodied-rl export` wrote.

    Raises:
        DeployError: it is none, or its parts do not belong together; one line.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.contract = read_folder(self.folder)
        self.runner = _import(self.folder / "run_policy.py")
        for term, key in _PRIVILEGED.items():
            self.runner.OBSERVATIONS.setdefault(term, lambda policy, state, term, key=key: state[key])
        try:
            self.policy = self.runner.Policy(self.folder / "policy.onnx")
        except SystemExit as error:
            raise DeployError(str(error)) from None
        self._check_network()
        try:
            self.model = mujoco.MjModel.from_xml_path(str(self.folder / "model.xml"))
        except ValueError as error:
            raise DeployError(f"{display(self.folder)}/model.xml: {' '.join(str(error).split())}") from None

    def read(self, robot: Any) -> dict[str, Any]:
        """Measure a simulated robot, and what no robot measures where the policy sees it."""
        state = robot.read()
        if any(term["term"] in _PRIVILEGED for term in self.contract["observations"]):
            position, quat, linear, _ = base_state(robot.model, robot.data, robot.model.body(self.contract["base"]).id)
            turned = np.zeros(3)
            mujoco.mju_rotVecQuat(turned, linear, quat * (1.0, -1.0, -1.0, -1.0))
            state |= {"lin_vel": turned, "height": position[2]}
        return state

    def _check_network(self) -> None:
        """Compare the network's inputs and outputs with the contract's.

        Raises:
            DeployError: the contract is of another network; one line.
        """
        observed = sum(term["size"] * term["history"] for term in self.contract["observations"])
        driven = sum(len(action["joint_names"]) for action in self.contract["actions"])
        wanted = {"obs": [observed]} | {part["input"]: part["shape"][2:] for part in self.contract["memory"]}
        wanted |= {"actions": [driven]} | {part["output"]: part["shape"][2:] for part in self.contract["memory"]}
        session = self.policy.session
        found = {one.name: one.shape[-1:] for one in (*session.get_inputs(), *session.get_outputs())}
        for name in (name for name in {**wanted, **found} if wanted.get(name) != found.get(name)):
            numbers = [f"{shape[0]} numbers" if shape else "none" for shape in (found.get(name), wanted.get(name))]
            said = f"{name}: the network has {numbers[0]}, and by the contract {numbers[1]}"
            raise DeployError(f"{display(self.folder / 'policy.onnx')}: {said}; export the run anew")

    def _against_contract(self) -> Iterator[str]:
        """Tell what model.xml has otherwise than the contract says that training had.

        Raises:
            DeployError: it is no model of the contract's robot.
        """
        try:
            self.model.body(self.contract["base"])
            parts = [(self.model.joint(name), self.model.actuator(name)) for name in self.policy.joints]
        except KeyError as error:
            said = str(error.args[0]).partition(".")[0]
            raise DeployError(f"{display(self.folder / 'model.xml')}: {said}; export the run anew") from None
        for joint, (found, motor) in zip(self.contract["joints"], parts, strict=True):
            dof, limit = int(found.dofadr[0]), float(np.abs(motor.forcerange).min())
            numbers = {"armature": self.model.dof_armature[dof], "friction_loss": self.model.dof_frictionloss[dof]}
            numbers |= {"joint_damping": self.model.dof_damping[dof], "effort_limit": limit}
            for name, value in numbers.items():
                if not np.isclose(value, joint[name], rtol=1e-3, atol=1e-6):
                    yield f"model.xml: {name} of {joint['name']} is {value:.4g}, and {joint[name]:.4g} in the contract"

    def changed(self, numbers: Mapping[str, np.ndarray]) -> list[str]:
        """Tell where the contract says something else than when golden.npz or rehearsal.npz was written."""
        written = json.loads(str(numbers["contract"]))
        changes = compared(written, self.contract)
        return [f"contract.{place}: {here}, and {there} when it was exported" for place, there, here in changes]

    def numbers(self, name: str) -> dict[str, np.ndarray]:
        """Read golden.npz or rehearsal.npz.

        Raises:
            DeployError: it is not there, or damaged.
        """
        path = self.folder / name
        wanted = _GOLDEN if name == "golden.npz" else _REHEARSAL
        try:
            with np.load(path, allow_pickle=False) as arrays:
                found = dict(arrays)
        except FileNotFoundError:
            raise DeployError(f"{display(path)}: no such file; export the run anew") from None
        except Exception as error:  # zipfile's, numpy's and the operating system's
            raise DeployError(f"{display(path)}: cannot be read ({type(error).__name__}); export the run anew") from None
        for key in wanted:
            if key not in found:
                raise DeployError(f"{display(path)}: has no {key}; export the run anew")
        for key, values in found.items():
            if values.dtype.kind == "f" and (not len(values) or not np.isfinite(values).all()):
                raise DeployError(f"{display(path)}: {key} is {'not finite' if len(values) else 'empty'}; export the run anew")
        return found

    def page(self) -> Page:
        """Read the page that the policy was trained on, as it is evaluated.

        Raises:
            UserError: it has no task to be judged by, or what it names is not there.
        """
        return evaluation_page(load(str(self.folder / "config.yaml")), SEEDS[0])

    def target(self, path: Path | None, *, keep_motors: bool = False) -> Target:
        """Make what is driven: training's own model, or that of a file."""
        if path is None:
            differences = list(self._against_contract())
            check_time(self.model, self.contract, display(self.folder / "model.xml"))
            return Target(self.model, self.contract["base"], differences=differences)
        target = fit(path, self.contract, self.model, keep_motors=keep_motors)
        self.policy.contract["base"] = self.contract["base"] = target.base  # the runner knows it by this name
        return target


def compare_golden(export: Export, numbers: dict[str, np.ndarray], target: Target) -> list[golden.Difference]:
    """Compare with golden.npz, one by one; what differs, in the order of the pipeline.

    Raises:
        DeployError: the runner fails.
    """
    own = target.model is export.model
    try:
        return list(golden.compare(numbers, export.runner, export.policy, target.model, export.read, own=own))
    except Exception as error:  # the runner is a file that people change
        raise _told(error, export.folder / "run_policy.py") from error


def sim2sim(
    export: Export, target: Target, *, keep_motors: bool = False, episodes: int | None = None, video: Path | None = None
) -> dict[str, Any]:
    """Repeat the rehearsal in a target: the same starts and commands, judged as training was.

    Args:
        export: the policy.
        target: what it drives.
        keep_motors: the target has motors of its own.
        episodes: how many of the rehearsal's; default all.
        video: films the first.

    Returns:
        The figures of `embodied_rl.learn.evaluate.evaluate` but for rewards, `passed`, `saturated` (the share of joints' control
        steps that ended at the torque limit), `said` by the runner, and `rehearsed`: what came out in training's environment.

    Raises:
        UserError: the page has no task, or the runner fails.
    """
    rehearsal, page = export.numbers("rehearsal.npz"), export.page()
    said = io.StringIO()
    try:
        with redirect_stdout(said):  # a runner speaks for one robot
            result = _sim2sim(export, target, rehearsal, page, keep_motors, episodes, video)
    except DeployError:
        raise
    except Exception as error:
        raise _told(error, export.folder / "run_policy.py") from error
    return result | {"said": [*dict.fromkeys(said.getvalue().splitlines())][:3]}


@torch.inference_mode()
def _sim2sim(
    export: Export,
    target: Target,
    rehearsal: Mapping[str, np.ndarray],
    page: Page,
    keep_motors: bool,
    episodes: int | None,
    video: Path | None,
) -> dict[str, Any]:
    count = min(episodes or len(rehearsal["qpos"]), len(rehearsal["qpos"]))
    rehearsal = {name: _first(name, values, count) for name, values in rehearsal.items()}
    robots, policies = _robots(export, target, rehearsal, count, keep_motors)
    stage, score = Stage(page, export.contract, rehearsal, robots), score_of(page)
    if lacking := set(getattr(score, "needs", ())) - {"joint_torque"}:
        raise DeployError(f"{page.name}: the score of {page.task} needs {min(lacking)}, which is not measured here")
    names = [part["name"] for part in export.contract["commands"]]
    limits = np.abs(target.model.actuator_forcerange[robots[0].motors]).min(axis=1)
    limits = np.where(target.model.actuator_forcelimited[robots[0].motors], limits, np.inf)
    going, failed, steps = torch.ones(count, dtype=torch.bool), torch.zeros(count, dtype=torch.bool), torch.zeros(count)
    saturated = 0
    score.begin(stage)
    with ExitStack() as stack:
        film = stack.enter_context(_Filming(export, target, page, video)) if video else None
        for step in range(stage.max_episode_length):
            for row in going.nonzero()[:, 0].tolist():
                command = {name: rehearsal[f"command/{name}/command"][step, row] for name in names}
                robots[row].write(*policies[row](export.read(robots[row]), command))
                robots[row].tick()
                saturated += int((np.abs(robots[row].data.actuator_force[robots[row].motors]) > 0.999 * limits).sum())
            steps += going
            stage.look(step + 1)
            ended = going & stage.failed()
            failed |= ended
            going &= ~ended & (step + 1 < stage.max_episode_length)
            score.step(stage, going)
            if film and (going[0] or step == 0):
                film.shoot(stage, robots[0], step)
            if not going.any():
                break
    figures = figures_of(score)
    figures = {f"{score.failure}_rate": float(failed.float().mean()), **figures}
    verdict, _ = judged(score, figures, target.model is not export.model)
    return {
        "episodes": count,
        **figures,
        "mean_episode_s": float(steps.mean()) * stage.step_dt,
        "saturated": saturated / (float(steps.sum()) * len(limits)),
        "passed": verdict.passed,
        "sentence": verdict.sentence,
        "not_judged": stage.not_judged,
        "rehearsed": json.loads(str(rehearsal["figures"])),
    }


def _robots(
    export: Export, target: Target, rehearsal: Mapping[str, np.ndarray], count: int, keep_motors: bool
) -> tuple[list[Any], list[Any]]:
    """Make a simulation and a policy of each episode, in its start."""
    names, base = export.policy.joints, target.model.body(export.contract["base"]).id
    robots, policies = [], []
    for row in range(count):
        policy = copy.copy(export.policy)
        policy.reset()
        robot = export.runner.Simulation(policy, copy.copy(target.model))
        if target.model is export.model:
            apply_fields(robot.model, dict(rehearsal), row)
        qpos = rehearsal["qpos"][row].copy()
        qpos[2] += target.lift
        place(robot.model, robot.data, base, names, qpos, rehearsal["qvel"][row])
        if keep_motors:
            robot.write = _kept(robot)
        robots.append(robot)
        policies.append(policy)
    return robots, policies


def _kept(robot: Any) -> Any:
    """Tell a model's own servos their targets."""
    stiff = robot.model.actuator_biasprm[robot.motors, 1] != 0.0

    def write(q: np.ndarray, dq: np.ndarray, kp: np.ndarray, kd: np.ndarray) -> None:
        robot.data.ctrl[robot.motors] = np.where(stiff, q, dq)

    return write


class _Filming:
    """A film of one robot, in whichever model."""

    def __init__(self, export: Export, target: Target, page: Page, path: Path) -> None:
        from embodied_rl.view.film import Film

        self._demo = demo_of(page)
        contract = export.contract
        self._film = Film(path, target.model, contract["base"], contract["base_height"], page.video, self._demo)
        self._names = [part["name"] for part in contract["commands"]]

    def __enter__(self) -> _Filming:
        self._film.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._film.__exit__(*error)

    def shoot(self, stage: Stage, robot: Any, step: int) -> None:
        """Add the frames of a control step."""
        command = stage.terms.commands[self._names[0]].command[0].tolist() if self._names else None
        while self._film.frames < (step + 1) * stage.step_dt * self._film.fps - 1e-6:
            measured = self._demo.measured(stage) if self._demo else ()
            self._film.shoot([robot.data.qpos.copy()], measured, command if self._demo else None)


def _first(name: str, values: np.ndarray, count: int) -> np.ndarray:
    """Take the first episodes of a rehearsal's array."""
    if name.startswith("command/"):
        return values[:, :count]
    return values[:count] if name in ("qpos", "qvel") or (name.startswith("model/") and not name.endswith("/names")) else values


def _import(path: Path) -> Any:
    """Import a runner: each its own module, and never from a cache of bytecode that an edit might have outrun."""
    if not path.is_file():
        raise DeployError(f"{display(path)}: no such file; export the run anew")
    name = f"run_policy_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        exec(compile(path.read_text(), str(path), "exec"), module.__dict__)
    except SyntaxError as error:
        raise DeployError(f"{display(path)}:{error.lineno}: not valid Python: {error.msg}") from None
    except SystemExit as error:
        raise DeployError(f"{display(path)}: ends while it is imported ({error})") from None
    except Exception as error:
        raise _told(error, path) from error
    if missing := [part for part in ("OBSERVATIONS", "Policy", "Simulation") if not hasattr(module, part)]:
        near = did_you_mean(missing[0], vars(module))
        raise DeployError(f"{display(path)}: has no {missing[0]}{near}; export the run anew for one that has")
    return module


def _told(error: Exception, path: Path) -> DeployError:
    """Say where in a runner something went wrong."""
    if (last := last_in(error, (str(path),))) is None:
        raise error
    return DeployError(f"{display(path)}:{last[1]}: {in_short(error)}")


def judge_hanging(export: Export, target: Target) -> str:
    """Say which joint does not come to its target, hung up and asked for nothing; empty where all do."""
    name, away = hang(target.model, export.runner, copy.copy(export.policy))
    return f"hung up and asked for nothing, {name} ends {away:.2f} rad from its target" if away > _HANGS else ""
