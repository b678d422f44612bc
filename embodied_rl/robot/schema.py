"""The schema of robot.yaml: its keys, their types and bounds, and what each means."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Gt, Lt, MinLen
from pydantic import BaseModel, ConfigDict, Field

Names = Annotated[tuple[str, ...], MinLen(1)]
NonNegative = Annotated[float, Ge(0)]
Positive = Annotated[float, Gt(0)]


class Section(BaseModel):
    """A mapping of robot.yaml: no unknown keys, no guesses about types, finite numbers only."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Motor(Section):
    """A class of motors. Null is as if a key were not written."""

    stiffness: NonNegative | None = Field(default=None, description="proportional gain [N m/rad; N/m of a slide]")
    damping: NonNegative | None = Field(default=None, description="derivative gain [N m s/rad; N s/m of a slide]")
    natural_frequency: Positive | None = Field(
        default=None,
        description="with damping_ratio and armature, in place of stiffness and damping [Hz]: "
        "stiffness = armature (2 pi natural_frequency)^2",
    )
    damping_ratio: NonNegative | None = Field(
        default=None, description="damping = 2 damping_ratio armature (2 pi natural_frequency); 1: critical"
    )
    effort_limit: Positive | None = Field(default=None, description="largest torque, either way [N m; N of a slide]")
    velocity_limit: Positive | None = Field(default=None, description="largest speed, either way [rad/s; m/s of a slide]")
    armature: NonNegative | None = Field(
        default=None, description="rotor inertia as the joint feels it [kg m^2]; null: the model's"
    )
    friction_loss: NonNegative | None = Field(default=None, description="dry friction of the joint [N m]; null: the model's")
    joint_damping: NonNegative | None = Field(
        default=None, description="passive viscous damping of the joint [N m s/rad]; null: the model's"
    )


class Joint(Motor):
    """A joint: its default position and its motor. Keys written here go before the motor's."""

    default: float = Field(description="position in the default pose [rad; m of a slide]")
    motor: str | None = Field(default=None, description="name of one of `motors`, which gives what is not written here")
    sdk_index: Annotated[int, Ge(0)] | None = Field(
        default=None, description="place of its motor in the arrays of the robot's SDK; for every joint or for none"
    )


class FootEntry(Section):
    """A foot: any number of geoms of one body, of any shape."""

    geoms: Names = Field(description="its collision geoms, all of one body")
    site: str = Field(description="the site that marks it, on the same body")
    gait_offset: Annotated[float, Ge(0), Lt(1)] | None = Field(
        default=None, description="when it steps, as a share of a gait cycle in [0, 1); for every foot or for none"
    )


class Head(Section):
    """The keys of robot.yaml that hold no entries of their own."""

    name: str = Field(description="of the robot; the folder's name where it is not given")
    model: str = Field(description="MJCF or URDF file, relative to this one")
    base: str = Field(description="body of the floating base")
    base_height: float = Field(description="height of the base above flat ground in the default pose, feet just touching [m]")
    mirror: dict[str, str] = Field(
        default={}, description="parts of names that swap under a left-right reflection, each pair once: {FL: FR}"
    )
    weld: tuple[str, ...] = Field(
        default=(), description="groups and joints that are taken out of the model, fixed at their default position"
    )


class NameList(Section):
    """An entry of `groups` or `bodies`."""

    names: Names


class RobotPage(Head):
    """A robot: what its model file cannot say."""

    extends: str = Field(
        default="",
        description="a robot to merge this one over: a shipped name, or a folder, relative to this file. Null takes away an "
        "inherited entry of motors, joints, groups, feet, bodies or mirror",
    )
    motors: dict[str, Motor] = Field(default={}, description="classes of motors, by name")
    joints: dict[str, Joint] = Field(description="every joint of the model, in the order of actions and observations")
    groups: dict[str, Names] = Field(
        default={}, description="named groups of joints, of joints and other groups; `all` is always there"
    )
    feet: dict[str, FootEntry] = Field(default={}, description="feet, by name, in the order of observations")
    bodies: dict[str, Names] = Field(default={}, description="named groups of bodies")


#: Keys whose entries null takes away from what a robot extends.
ENTRIES = ("motors", "joints", "groups", "feet", "bodies", "mirror")
