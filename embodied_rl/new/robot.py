"""`embodied-rl new robot`: a robot's folder and a page that trains it, from a URDF or MJCF file."""

from __future__ import annotations

import itertools
import math
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import mujoco
import numpy as np

from embodied_rl.config.page import PhysicsSettings
from embodied_rl.errors import UserError
from embodied_rl.new import motors, write
from embodied_rl.new.anatomy import Anatomy, study
from embodied_rl.new.motors import Motor
from embodied_rl.new.source import Source, read_source, refuse_no_file
from embodied_rl.new.stance import Poser, Stance
from embodied_rl.robot import RobotSpec, load_robot, robot_names
from embodied_rl.scene import Scene, build_scene
from embodied_rl.scene.contacts import collides
from embodied_rl.strict_yaml import display
from embodied_rl.view.film import check_picture, use_gl
from embodied_rl.waiting import Waiting

#: How long it has to stand [s], how far it may lean [rad] and which share of its height it may lose.
_SECONDS, _LEAN, _SINK = 2.0, 0.2, 0.15
#: How far from its frame a link may touch the ground, as a share of the robot's height, for the frame to mark a foot.
_AT_THE_END = 0.1
#: How far beside the feet the centre of mass of a robot may be that does not stand, as a share of its legs.
_BESIDE = 0.5


def new_robot(file: Path, output: Path | None = None, png: Path | None = None) -> list[str]:
    """Make a robot's folder from its model file.

    Args:
        file: a URDF or MJCF.
        output: the folder; default: named as the file, in the working folder.
        png: draw the robot as it stands to this file.

    Returns:
        What was guessed and from what, a line each, and the next command.

    Raises:
        UserError: the folder is there already, or the file cannot become a robot that walks; one line.
    """
    refuse_no_file(file)
    folder = output or Path(file.name.partition(".")[0])
    if folder.exists():
        raise UserError(f"{folder}: is there already; name another --output, or remove it")
    if png is not None:
        check_picture(png)
        use_gl()  # what cannot draw says so before anything is written
    with ExitStack() as stack:
        waiting = stack.enter_context(Waiting(f"a robot of {file.name}"))
        work = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "robot"
        stack.enter_context(_in_words_of(file, work))
        work.mkdir()
        waiting.far = "reading it"
        source = read_source(file, work)
        anatomy = study(source)
        feet = _mark_feet(source, anatomy)
        source.save()
        waiting.far = "finding its pose"
        poser = Poser(anatomy)
        if (short := min(poser.reach)) <= 0.0:
            leg = anatomy.legs[poser.reach.index(short)]
            raise UserError(
                f"{file}: no feet found: {anatomy.model.body(leg.body).name!r} lies lowest, and comes not below "
                f"{leg.joints[0]!r} wherever its joints are; a robot that walks has legs under it (z up, x forward)"
            )
        if wheels := poser.wheels():
            raise UserError(
                f"{file}: no feet found: {', '.join(map(repr, wheels))} lift nothing off the ground, as wheels do; a robot that "
                "walks has legs under it (z up, x forward), and a collision geom at the end of each"
            )
        tried = []
        for (origin, stance), stiffer in itertools.product(_stances(source, poser), motors.STIFFER):
            chosen = motors.choose(source, anatomy, stance, stiffer)
            page = write.robot_page(source, anatomy, stance, chosen, feet)
            (work / "robot.yaml").write_text(page, encoding="utf-8")
            waiting.far = f"standing, attempt {len(tried) + 1}"
            robot = load_robot(str(work))
            if anatomy.mirror:
                robot.joint_mirror()  # as the page has it
            lean, height = stand(robot)
            tried.append((lean > _LEAN or height < 1.0 - _SINK, lean, origin, stance, chosen, height, stiffer))
            if not tried[-1][0]:
                break
        if not tried:
            raise UserError(
                f"{file}: no feet found: what lies lowest is under the hips in no pose; z must point up, and x forward"
            )
        falls, lean, origin, stance, chosen, height, stiffer = min(tried, key=lambda one: one[:2])
        if falls and stance.offset > _BESIDE * stance.reach:
            names = ", ".join(repr(anatomy.model.body(leg.body).name) for leg in anatomy.legs)
            raise UserError(
                f"{file}: no feet found: {names} lie lowest, and the centre of mass is {stance.offset:.2g} m beside them; pose "
                "the robot so that it stands (z up, x forward), in the file or in its keyframe `home`"
            )
        (work / "robot.yaml").write_text(write.robot_page(source, anatomy, stance, chosen, feet), encoding="utf-8")
        if lean <= _LEAN:  # not what it lies on
            feet = _with_what_touches(load_robot(str(work)), anatomy.model, feet)
        page = write.robot_page(source, anatomy, stance, chosen, feet)
        (work / "robot.yaml").write_text(page, encoding="utf-8")
        (work / f"{source.name}_flat.yaml").write_text(write.flat_page(source, anatomy, stance), encoding="utf-8")
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(work, folder)
    if png is not None:
        from embodied_rl.new.picture import draw

        draw(load_robot(str(folder.resolve())), png)
    stood = f"stands {_SECONDS:g} s on its motors: leans {lean:.3f} rad, keeps {100 * height:.0f} % of its height"
    if falls:
        stood = (
            f"DOES NOT STAND on its motors for {_SECONDS:g} s: leans {lean:.2f} rad, keeps {100 * height:.0f} % of its height; "
        )
        if len(anatomy.legs) < 3 and not any(leg.flat for leg in anatomy.legs):
            stood += "no pose does, on so few points: it has to balance"
        else:
            stood += f"mend the defaults in {display(folder / 'robot.yaml')}"
    if stiffer > 1.0:
        stood += f"; all stiffness is {stiffer:g} times the rule's for that"
    return [*_told(source, anatomy, stance, origin, chosen), stood, *_next(folder, source, png)]


@contextmanager
def _in_words_of(file: Path, work: Path) -> Iterator[None]:
    """Say what is refused of the folder in the making, which will not be there, of the file that it is made from."""
    try:
        yield
    except UserError as error:
        told = str(error).replace(f"{work.resolve()}/", "").replace(f"{work}/", "")
        why = told.removeprefix(f"{file.name}: ")  # of its copy
        raise UserError(f"{file}: cannot become a robot: {why}" if told != str(error) else told) from error


def stand(robot: RobotSpec) -> tuple[float, float]:
    """Let a robot stand on its motors in its default pose: the most that it leans [rad], the share of its height at the end."""
    scene = build_scene(robot, collisions="feet", physics=PhysicsSettings())
    upright, leans, height = None, 0.0, 0.0
    for data in _standing(robot, scene):
        turn, height = data.xmat[scene.base_body].reshape(3, 3), float(data.xpos[scene.base_body, 2])
        upright = turn.T[:, 2].copy() if upright is None else upright
        leans = max(leans, math.acos(np.clip(float((turn @ upright)[2]), -1.0, 1.0)))
    return leans, height / robot.base_height


def _standing(robot: RobotSpec, scene: Scene) -> Iterator[mujoco.MjData]:
    """Go through the steps of a robot that is held on its motors in its default pose, feet just touching at first."""
    data = mujoco.MjData(scene.model)
    data.qpos[:], data.ctrl[:] = scene.default_qpos(), robot.default_joint_pos
    mujoco.mj_kinematics(scene.model, data)
    yield data
    for _ in range(round(_SECONDS / scene.model.opt.timestep)):
        mujoco.mj_step(scene.model, data)
        yield data


def _with_what_touches(
    robot: RobotSpec, file: mujoco.MjModel, feet: dict[str, tuple[list[str], str]]
) -> dict[str, tuple[list[str], str]]:
    """Add to each foot the geoms of its link that touch the ground too while the robot stands, as where soft balls give way."""
    try:
        scene = build_scene(robot, collisions="full", physics=PhysicsSettings())
    except UserError:  # whose other geoms are where they cannot be, as a tail in the ground: its feet alone collide
        return feet
    model, touched = scene.model, set[int]()

    def fixed_to(body: int) -> int:  # in the file: toes that no actuator drives, and robot.yaml welds, are none of a foot's link
        return int(file.body_weldid[file.body(model.body(body).name).id])

    for data in _standing(robot, scene):
        touched |= {int(geom) for pair in data.contact.geom if model.geom("ground").id in pair for geom in pair}
    grown = {}
    for name, (geoms, site) in feet.items():
        link = fixed_to(model.geom(geoms[0]).bodyid[0])
        also = [model.geom(geom).name for geom in sorted(touched) if fixed_to(model.geom_bodyid[geom]) == link]
        grown[name] = ([*geoms, *(geom for geom in also if geom not in geoms)], site)
    return grown


def _stances(source: Source, poser: Poser) -> Iterator[tuple[str, Stance]]:
    """Go through the poses that may stand, with the feet under the hips, the best first."""
    named = {name: pose for name, pose in source.poses.items() if re.search("home|stand|default", name.lower())}
    found = itertools.chain(
        ((f"the file's keyframe {name!r}", poser.describe(pose)) for name, pose in named.items()),
        (("feet level, the centre of mass over them", poser.solve()) for _ in range(1)),  # not before it is asked for
        (("the pose of the file", poser.describe({})) for _ in range(1)),
    )
    yield from ((origin, stance) for origin, stance in found if stance.reach > 0.0)


def _mark_feet(source: Source, anatomy: Anatomy) -> dict[str, tuple[list[str], str]]:
    """Give the feet's geoms names and each foot a site where it has none; geoms and site of each foot."""
    spec, model = source.spec, anatomy.model
    feet = {}
    by_id = {geom.id: geom for geom in spec.geoms}
    taken = {geom.name for geom in spec.geoms} | {site.name for site in spec.sites}
    for leg in anatomy.legs:
        geoms = [by_id[index] for index in leg.geoms]
        # all of the link, any of which may touch the ground
        others = [geom for index, geom in by_id.items() if _of_link(model, index, leg.body) and geom not in geoms]
        for index, geom in enumerate([*geoms, *others]):
            if not geom.name:
                stem = f"{leg.foot}_foot" + (f"_{index}" if index else "")
                geom.name = stem if stem not in taken else f"{stem}_geom"
            if geom.condim == 1:
                geom.condim = 3  # the file's ground had friction for both; ours leaves it to the feet
        body = spec.body(model.body(leg.body).name)
        if source.urdf:  # a link's own frame marks it, where that is at its end
            near = np.linalg.norm(leg.place) < _AT_THE_END * anatomy.height
            feet[leg.foot] = ([geom.name for geom in geoms], body.name if near else source.mark(body.name, leg.place))
            continue
        sites = [site for site in body.sites if np.allclose(site.pos, leg.place, atol=1e-9)]
        site = sites[0] if sites else body.add_site(name=f"{leg.foot}_foot_site", pos=leg.place)
        site.name = site.name or f"{leg.foot}_foot_site"
        feet[leg.foot] = ([geom.name for geom in geoms], site.name)
    return feet


def _of_link(model: mujoco.MjModel, geom: int, body: int) -> bool:
    """Whether a geom collides and is of a body, or of one fixed to it."""
    return collides(model.geom(geom)) and model.body_weldid[model.geom_bodyid[geom]] == model.body_weldid[body]


def _told(
    source: Source, anatomy: Anatomy, stance: Stance, origin: str, chosen: tuple[dict[str, Motor], dict[str, str]]
) -> list[str]:
    """Say what was guessed and from what, a line each."""
    model, (classes, of) = anatomy.model, chosen
    mass = float(model.body_subtreemass[anatomy.base])
    bodies = ", ".join(dict.fromkeys(model.body(leg.body).name for leg in anatomy.legs))
    others = len(anatomy.joints) - len(anatomy.moving)
    mirror = ", ".join(f"{one} and {other}" for one, other in list(anatomy.mirror.items())[:4])
    gait = {2: "a walk", 4: "a trot"}.get(len(anatomy.legs), "neighbours take turns")
    root = "the root link" if source.urdf else "the body with the free joint"
    lines = [
        *source.notes,
        f"base: {source.base}, {root}; {mass:.4g} kg",
        f"feet: {', '.join(leg.foot for leg in anatomy.legs)} ({bodies}): the lowest collision geoms; {gait}",
        f"legs: {write.number(stance.reach)} m from hip to sole at full reach; {len(anatomy.moving)} joints, {others} others",
        f"pose: {origin}; base at {write.number(stance.base_height)} m, centre of mass {1e3 * stance.offset:.1f} mm off the "
        "middle of the feet",
        f"mirror: {mirror}, from places and axes" if mirror else f"mirror: none: {anatomy.no_mirror or 'no names to swap'}",
    ]
    if welded := source.welded(anatomy.joints):
        lines.append(f"welded: {', '.join(welded)}: no actuator drives them")
    if source.passive:
        lines.append(f"passive: {', '.join(source.passive)}: no actuator drives them, and constraints or tendons of the file do")
    for name, motor in classes.items():
        joints = [joint for joint, its in of.items() if its == name]
        known = joints[0] in source.effort
        effort = f"effort {motor.effort_limit:g} {'from the file' if known else 'guessed: the file has none'}"
        rule = "the load of its legs" if joints[0] in anatomy.moving else "its inertia"
        capped = known and motor.stiffness < 0.99 * max(
            classes[its].stiffness for one, its in of.items() if one in anatomy.moving
        )
        rule = "its effort limit" if capped and joints[0] in anatomy.moving else rule
        speed = f", velocity {motor.velocity_limit:g} from the file" if motor.velocity_limit else ""
        lines.append(
            f"motor {name}: {effort}{speed}; stiffness {motor.stiffness:g} from {rule}, damping {motor.damping:g}"
            + (f", armature {motor.armature:g} guessed" if motor.armature else "")
        )
    length = stance.reach / write.REACH
    scaled = f"page: go2_flat, lengths times {length:.2f}, speeds times {math.sqrt(length):.2f} (Froude)"
    four = "" if len(anatomy.legs) == 4 else "; its rewards are four legs': a start"
    return [*lines, scaled + four]


def _next(folder: Path, source: Source, png: Path | None) -> list[str]:
    shown = f"./{folder}" if str(folder) in robot_names() else display(folder)  # not the shipped robot of this name
    lines = [f"next: embodied-rl train {folder / f'{source.name}_flat.yaml'}", f"      embodied-rl view {shown}"]
    return [f"drawn: {png}", *lines] if png else lines
