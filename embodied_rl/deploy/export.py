"""Writing the folder that a robot needs: network, contract, model, runner, golden numbers, rehearsal, and how to go on."""

from __future__ import annotations

import json
import logging
import os
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from embodied_rl.config import Page
from embodied_rl.config.privileged import warnings_of
from embodied_rl.deploy import golden
from embodied_rl.deploy.contract import KEY, DeployError, make_contract, to_yaml
from embodied_rl.deploy.network import make_network, memory_parts
from embodied_rl.deploy.readme import readme
from embodied_rl.deploy.rehearsal import EPISODES, rehearse
from embodied_rl.deploy.runner import make_runner
from embodied_rl.env import Env
from embodied_rl.learn.policy import Policy
from embodied_rl.make_env import make
from embodied_rl.mdp.bind import driven
from embodied_rl.robot import RobotSpec
from embodied_rl.scene import whole_spec
from embodied_rl.strict_yaml import display

log = logging.getLogger("embodied_rl")

#: Largest share by which the model that was written may differ from the one that was trained in.
_SAME = 1e-4
_HEAD = "# What policy.onnx holds as well, for people; docs/contract.schema.json of embodied_rl tells what each field is.\n"
_COMPARED = ("body_mass", "body_inertia", "body_ipos", "jnt_range", "dof_armature", "dof_damping", "dof_frictionloss")


def export(
    policy: Policy,
    page: Page,
    folder: Path,
    *,
    git_commit: str = "",
    evaluated: Mapping[str, Mapping[str, Any]] | None = None,
    episodes: int = EPISODES,
) -> Path:
    """Write a policy as a folder; each file is replaced whole, and a run_policy.py that was edited stays.

    Args:
        policy: what acts.
        page: that it was trained on, as it would go on.
        folder: made where it is not there.
        git_commit: of the code that trained it.
        evaluated: figures of its evaluations, by what they are called.
        episodes: of the rehearsal; 0: none.

    Returns:
        The folder.

    Raises:
        DeployError: the policy does not fit the page, the exported network computes something else, or there is no room.
    """
    if page.patches:
        raise DeployError(
            f"{page.name}: patches: an exported model stands on a plane, where a policy of rough ground is not rehearsed as it "
            "was trained, and run_policy.py has no ground to scan; export policies of pages without patches"
        )
    env = make(golden.golden_page(page))
    runner, known = make_runner(page.task)
    try:
        contract = make_contract(env, memory_parts(policy), git_commit, policy.squash.bound if policy.squash else None)
        size = sum(term["size"] * term["history"] for term in contract["observations"])
        if size != policy.obs_size:
            raise DeployError(
                f"the policy takes {policy.obs_size} observations, the page {page.name} gives {size}; "
                "export it with the page that it was trained on"
            )
        _warn(page, contract, known)
        numbers = golden.record(env, policy)
        spec, assets = _model(env)
    finally:
        env.close()
    rehearsal = rehearse(page, policy, episodes) if page.task and episodes else {}
    network = make_network(policy, {KEY: json.dumps(contract)})
    figures = json.loads(str(rehearsal["figures"])) if rehearsal else {}
    texts = {
        "contract.yaml": f"{_HEAD}{to_yaml(contract)}",
        "model.xml": spec,
        "config.yaml": page.to_yaml(),
        "README.md": readme(page, contract, evaluated or {}, figures),
    }
    edited = folder / "run_policy.py"
    if edited.is_file() and edited.read_text(encoding="utf-8") != runner:
        log.warning("%s: was edited, and stays as it is; move it away for a new one", display(edited))
    else:
        texts["run_policy.py"] = runner
    with _writing(folder) as temporary:
        for name, path in assets.items():
            (temporary / "assets").mkdir(exist_ok=True)
            shutil.copyfile(path, temporary / "assets" / name)
        for name, text in texts.items():
            (temporary / name).write_text(text, encoding="utf-8")
        numbers["contract"] = written = np.array(json.dumps(contract))
        np.savez_compressed(temporary / "golden.npz", **numbers)  # pyright: ignore[reportArgumentType]
        if rehearsal:
            rehearsal["contract"] = written
            np.savez_compressed(temporary / "rehearsal.npz", **rehearsal)  # pyright: ignore[reportArgumentType]
        (temporary / "policy.onnx").write_bytes(network)
    return folder


@contextmanager
def _writing(folder: Path):
    """Give a folder to write into, whose files then take their places; nothing of it is left after an error."""
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        folder.mkdir(exist_ok=True)
        for path in sorted(temporary.rglob("*")):
            place = folder / path.relative_to(temporary)
            if path.is_dir():
                place.mkdir(exist_ok=True)
            else:
                os.replace(path, place)
    except OSError as error:
        raise DeployError(f"{display(folder)}: not written ({error.strerror}); name another --output") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _model(env: Env) -> tuple[str, dict[str, Path]]:
    """Write the scene as MJCF that needs nothing but its assets; the text, and the files of these by name."""
    page, robot = env.page, env.robot.spec
    spec = whole_spec(robot, physics=page.physics, controls=driven(page, robot), **page.scene.model_dump())
    spec.compile()
    text, assets = _take_assets(spec.to_xml(), robot)
    contents = {f"assets/{name}": path.read_bytes() for name, path in assets.items()}
    model, own = mujoco.MjModel.from_xml_string(text, contents), env.scene.model
    for name in _COMPARED:
        here, there = getattr(model, name), getattr(own, name)
        if here.shape != there.shape or not np.allclose(here, there, rtol=_SAME, atol=1e-9):
            raise DeployError(f"model.xml: {name} is not what it is in training: the robot's model cannot be written as one file")
    return text, assets


def _take_assets(text: str, robot: RobotSpec) -> tuple[str, dict[str, Path]]:
    """Have an MJCF read its meshes and textures from `assets`; the text, and the files by their names there."""
    tree, files = ElementTree.fromstring(text), dict[str, Path]()
    compiler = tree.find("compiler")
    folders = {} if compiler is None else {kind: compiler.get(f"{kind}dir", "") for kind in ("mesh", "texture")}
    for asset in tree.iterfind("asset/*[@file]"):
        path = Path(folders.get("texture" if asset.tag == "texture" else "mesh", "")) / asset.get("file", "")
        name = path.as_posix().strip("/.").replace("/", "_")
        files[name] = robot.model_path.parent / path
        asset.set("file", name)
    if not files:
        return text, files
    assert compiler is not None
    for kind in folders:
        compiler.set(f"{kind}dir", "assets")
    return ElementTree.tostring(tree, encoding="unicode"), files


def _warn(page: Page, contract: Mapping[str, Any], known: set[str]) -> None:
    """Warn of what the policy sees and no robot measures, and of what the runner does not know."""
    for line in warnings_of(page):
        log.warning("%s", line)
    for term in contract["observations"]:
        if not term["privileged"] and term["term"] not in known:
            place = f"{page.name}: observations.actor.{term['name']}"
            log.warning(
                "%s: run_policy.py does not know %s; write it into its OBSERVATIONS, or into the family's deploy.py",
                place,
                term["term"],
            )
