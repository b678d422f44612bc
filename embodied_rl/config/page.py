"""The page: what a task is, validated, frozen."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le
from pydantic import Field, StringConstraints, ValidationInfo, field_validator

from embodied_rl import strict_yaml
from embodied_rl.config.model import Count, Model
from embodied_rl.config.pool import PoolSettings
from embodied_rl.config.ppo import PPOSettings
from embodied_rl.config.sac import SACSettings
from embodied_rl.config.terms import EXTRAS, SECTIONS
from embodied_rl.config.types import Fraction, IntRange, NonNegative, PerGroup, Positive, Range, refuse
from embodied_rl.problems import did_you_mean, shown

SolverIterations = Annotated[int, Ge(1), Le(10_000)]
Rows = Annotated[int, Ge(1), Le(1_000_000)]
Device = Annotated[str, StringConstraints(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]
Source = Annotated[str, StringConstraints(pattern=r"^(gymnasium|dm_control|envpool|python):\S+$")]


#: Kinds of environments of others, with an example of each.
SOURCES = {
    "gymnasium": "Ant-v5",
    "dm_control": "walker-walk",
    "envpool": "Go1JoystickFlatTerrain-v1",
    "python": "my_module:make",
}
#: Learners by the name that a page has for them, with their classes.
LEARNERS = {
    "ppo": "embodied_rl.learn.ppo:PPO",
    "impala": "embodied_rl.learn.impala:IMPALA",
    "sac": "embodied_rl.learn.sac:SAC",
}
#: What a page with `env.source` has no say in: its environments bring it along.
ROBOT_SECTIONS = ("terms", "task", "robot", "scene", "terrain", *SECTIONS, "score")
#: What such a page may say of the physics.
SOURCE_PHYSICS = ("num_threads", "max_unstable")

#: What an engine lacks, by setting; checked before anything is imported.
_LACKS = {"warp": {"solver": ("pgs",)}, "mjx": {"solver": ("pgs",), "integrator": ("implicit",)}}


class SceneSettings(Model):
    """What stands in the world beside the terrain."""

    collisions: Literal["feet", "full"] = Field(default="feet", description="which of the robot's geoms collide")
    self_collision: Literal["file", "off", "pairs", "all"] = Field(
        default="file",
        description="what of the robot meets itself; file: what collides, as its file says; off: nothing; pairs: the file's "
        "pairs, whatever collides; all: every geom that its file lets collide, of bodies that are apart in the default pose",
    )
    dry_friction: bool = Field(
        default=True, description="the dry friction that the robot's joints have; false: none, and a constraint row less a joint"
    )


class EnvSettings(Model):
    """The environment around the physics."""

    num_envs: Count = Field(default=1024, description="robots simulated at once")
    episode_s: Annotated[float, Gt(0), Le(86_400)] = Field(default=20.0, description="length of an episode [s]")
    seed: Annotated[int, Ge(0), Le(2**32 - 1)] = Field(default=1, description="key of every random number")
    reward_scale_dt: bool = Field(default=True, description="multiply rewards by the control period")
    reward_floor: float | None = Field(default=0.0, description="least reward of a step; null: no floor")
    random_episode_phase: bool = Field(default=True, description="start the first episodes at random times")
    compile: Literal["auto", True, False] = Field(default="auto", description="torch.compile the step; auto: where it can")
    final_obs_groups: tuple[str, ...] = Field(default=("critic",), description="read before a reset, to bootstrap")
    source: Source | None = Field(
        default=None,
        description="environments of others in place of a robot: gymnasium:Ant-v5, dm_control:walker-walk, "
        "envpool:Go1JoystickFlatTerrain-v1, python:my_module:make",
    )
    source_options: dict[str, Any] = Field(default={}, description="keyword arguments of what makes an environment of the source")
    groups: dict[str, tuple[str, ...]] = Field(
        default={}, description="keys of the source's observation, by group; empty: all of it is the group actor"
    )
    reward_scale: Positive = Field(default=1.0, description="what the learner sees of a source's reward; reports show it whole")

    @field_validator("source", mode="before")
    @classmethod
    def is_a_source(cls, source: Any) -> Any:
        """Check that the kind of the source is known."""
        kind, colon, name = source.partition(":") if isinstance(source, str) else ("", "", "")
        if isinstance(source, str) and (kind not in SOURCES or not colon or not name or " " in name):
            allowed = ", ".join(f"{one}:{example}" for one, example in SOURCES.items())
            raise refuse(f"{shown(source)} is not KIND:NAME{did_you_mean(kind, SOURCES) if colon else ''} (like {allowed})")
        return source


class PhysicsSettings(Model):
    """The engine and its options; names and meanings are those of MuJoCo's mjOption."""

    engine: Literal["native", "warp", "mjx", "isaacgym"] = Field(default="native", description="the physics engine")
    device: Device = Field(default="auto", description="cpu, cuda, cuda:1; auto: a GPU if the engine can use one")
    dt: Annotated[float, Ge(1e-5), Le(1)] = Field(default=0.005, description="physics step [s]")
    decimation: Annotated[int, Ge(1), Le(1000)] = Field(default=4, description="physics steps per control step")
    integrator: Literal["euler", "implicit", "implicitfast", "rk4"] = "implicitfast"
    solver: Literal["newton", "cg", "pgs"] = "newton"
    cone: Literal["pyramidal", "elliptic"] = "pyramidal"
    iterations: SolverIterations = Field(default=10, description="most iterations of the constraint solver")
    ls_iterations: SolverIterations = Field(default=20, description="most iterations of its line search")
    impratio: Positive = Field(default=1.0, description="frictional to normal constraint impedance")
    tolerance: NonNegative = Field(default=1e-8, description="the solver stops early below this")
    nconmax: Rows | None = Field(default=None, description="warp: room for contacts of one robot; null: measured")
    njmax: Rows | None = Field(default=None, description="warp: room for constraint rows of one robot; null: measured")
    graph: bool = Field(default=True, description="warp on a GPU: the whole step as one CUDA graph")
    max_overflow: Fraction = Field(default=0.01, description="the run stops when more of the robots run out of room for contacts")
    num_threads: Annotated[int, Ge(0), Le(1024)] = Field(default=0, description="physics threads; 0: one per core")
    max_unstable: Fraction = Field(default=0.05, description="the run stops when more of the robots blow up in an iteration")

    @field_validator("solver", "integrator")
    @classmethod
    def has(cls, value: str, info: ValidationInfo) -> str:
        """Check that the engine knows the solver and the integrator."""
        engine = info.data.get("engine", "native")
        if value in _LACKS.get(engine, {}).get(info.field_name or "", ()):
            raise refuse(f'"{value}": the engine {engine} has no such {info.field_name}; take another one, or engine: native')
        return value

    @field_validator("device")
    @classmethod
    def runs_there(cls, value: str, info: ValidationInfo) -> str:
        """Check that the native engine, which runs on the CPU alone, is not asked onto a GPU."""
        if value.startswith("cuda") and info.data.get("engine") == "native":
            raise refuse(f'"{value}": the engine native runs on the CPU; take engine: warp, or leave the device out')
        return value


class TerrainSettings(Model):
    """The grid of `patches`: a row along y for each kind, harder along x; a page without patches has a plane."""

    rows: Annotated[int, Ge(1), Le(100)] = Field(default=10, description="patches of each kind, from difficulty 0 to 1")
    size: Annotated[float, Ge(1), Le(100)] = Field(default=8.0, description="side of a patch [m]")
    border: Annotated[float, Ge(0), Le(100)] = Field(default=8.0, description="level ground around the grid [m]")
    cell: Annotated[float, Ge(0.01), Le(1)] = Field(default=0.05, description="distance of two points of the ground [m]")
    seed: Annotated[int, Ge(0), Le(2**32 - 1)] = Field(default=1, description="key of what is random about the patches")


class TrainSettings(Model):
    """The loop: who learns, from how much at a time, for how long; saving and reporting."""

    learner: str = Field(default="ppo", description="ppo, impala, sac, or module:Class; rsl_rl.algorithms:PPO is rsl_rl's own")
    iterations: Count = Field(default=300, description="rollouts, and updates on them, that a training takes")
    steps: Count = Field(default=24, description="control steps of each robot in a rollout")
    save_every: Count = Field(default=50, description="iterations between checkpoints")
    keep_checkpoints: Count = Field(default=5, description="how many of the last ones are kept, beside the best one")
    evaluate_every: Count | None = Field(
        default=None,
        description="iterations between evaluations, which the best checkpoint goes by; null: none, or, with stop_when: passed, "
        "10, near the score's limits alone",
    )
    stop_when: Literal["end", "passed"] = Field(
        default="end",
        description="passed: the training ends once two evaluations in a row passed, and the first's policy did on other seeds",
    )
    max_skipped: Fraction = Field(default=0.1, description="the run stops when more of an iteration's updates are not finite")
    logger: Literal["tensorboard", "wandb"] = Field(default="tensorboard", description="wandb mirrors the TensorBoard events")
    device: Device = Field(
        default="auto", description="cpu, cuda, cuda:1: where the learner computes; auto: where the robots are; of a pool, a GPU"
    )
    overlap: bool = Field(
        default=False, description="robots on the CPU collect the next rollout while the learner updates; of a pool: pool.mode"
    )
    importance_clip: Annotated[float, Ge(1)] = Field(
        default=2.0,
        description="overlap, and a pool's: bound of the ratio between the present policy and the one that acted, with "
        "correction: decoupled",
    )
    correction: Literal["decoupled", "vtrace", "none"] = Field(
        default="decoupled",
        description="overlap, and a pool's: what PPO makes of an older policy's actions; decoupled: its ratio is to the policy "
        "before the update, weighed by that one's to the older; vtrace: to the older one, with V-trace's advantages; none: as if "
        "they were the present one's",
    )

    @field_validator("learner", mode="before")
    @classmethod
    def is_a_learner(cls, learner: Any) -> Any:
        """Check that it is one of ours, by whichever name, or names a class."""
        learner = next((name for name, path in LEARNERS.items() if path == learner), learner)
        if isinstance(learner, str) and learner not in LEARNERS and not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", learner):
            near = did_you_mean(learner, LEARNERS)
            ours = ", ".join(LEARNERS)
            raise refuse(f"{shown(learner)} is no learner{near} ({ours}, or module:Class, like rsl_rl.algorithms:PPO)")
        return learner


class DistributedSettings(Model):
    """Several processes, started by torchrun; see docs/distributed.md."""

    num_envs_scope: Literal["auto", "per_rank", "global"] = Field(
        default="auto",
        description="whose env.num_envs are: each process's, or shared out among all; auto: each one's where it has a GPU to "
        "simulate them on, else shared out",
    )
    learning_rate_rule: Literal["none", "sqrt", "linear"] = Field(
        default="none",
        description="ppo.learning_rate times the (root of the) number of processes, where env.num_envs are each one's",
    )
    backend: Literal["auto", "gloo", "nccl"] = Field(default="auto", description="auto: nccl between GPUs, else gloo")
    timeout_s: Positive = Field(default=300.0, description="a process that others wait for longer is taken for hung [s]")


class VideoSettings(Model):
    """What `play --video` films."""

    width: Annotated[int, Ge(16), Le(7680)] = 960
    height: Annotated[int, Ge(16), Le(4320)] = 540
    fps: Annotated[int, Ge(1), Le(240)] = 25


class Entry(Model):
    """One term of the page."""

    term: str
    params: dict[str, Any] = Field(default={})
    """Every parameter of the term, defaults filled in."""
    weight: float = 1.0
    """Factor of a reward."""
    noise: PerGroup[NonNegative] = 0.0
    """Half the width of the uniform noise on an observation."""
    offset: NonNegative = 0.0
    """Half the width of what is drawn for an episode and added to all numbers of an observation."""
    dropout: Fraction = 0.0
    """Share of an observation's numbers that is missing in each step, where they read 0."""
    scale: float = 1.0
    """Factor of an observation."""
    clip: Range | None = None
    """Bounds of an observation."""
    delay: IntRange = (0, 0)
    """Age of an observation, drawn from this range [control steps]."""
    history: Count = 1
    """How many of the last observations stand side by side."""


Entries = dict[str, Entry]


class Page(Model):
    """A task, complete: every default filled in, every path absolute."""

    name: str
    terms: tuple[str, ...] = ()
    task: str | None = None
    """The task family: a shipped name or a folder; without one a page trains, and nothing judges or demonstrates it."""
    robot: str = ""
    scene: SceneSettings = SceneSettings()
    terrain: TerrainSettings = TerrainSettings()
    patches: Entries = Field(default={})
    env: EnvSettings = EnvSettings()
    physics: PhysicsSettings = PhysicsSettings()
    actions: Entries = Field(default={})
    observations: dict[str, Entries] = Field(default={})
    commands: Entries = Field(default={})
    rewards: Entries = Field(default={})
    terminations: Entries = Field(default={})
    events: Entries = Field(default={})
    curriculum: Entries = Field(default={})
    score: dict[str, Any] = Field(default={})
    """Every parameter of the family's score, defaults filled in."""
    train: TrainSettings = TrainSettings()
    ppo: PPOSettings = PPOSettings()
    sac: SACSettings = SACSettings()
    distributed: DistributedSettings = DistributedSettings()
    pool: PoolSettings = PoolSettings()
    video: VideoSettings = VideoSettings()

    @property
    def control_dt(self) -> float:
        """Time between two actions [s]."""
        return self.physics.dt * self.physics.decimation

    @property
    def symmetry(self) -> str:
        """What its learner makes of left-right symmetry."""
        return self.sac.symmetry if self.train.learner == "sac" else self.ppo.symmetry

    @property
    def in_shards(self) -> bool:
        """Whether the policy answers `pool.shard_size` environments at once: where there could be a pool, to the same bits."""
        return self.pool.workers is not None or self.env.source is not None

    def to_mapping(self) -> dict[str, Any]:
        """Resolve the page to the mapping that `to_yaml` writes."""
        mapping: dict[str, Any] = {}
        for section in type(self).model_fields:
            value = getattr(self, section)
            if self.env.source and section in ROBOT_SECTIONS:
                continue
            if self.env.source and section == "physics":
                mapping[section] = value.model_dump(include=set(SOURCE_PHYSICS))
            elif section == "observations":
                mapping[section] = {group: _entries(section, entries) for group, entries in value.items()}
            elif section in SECTIONS:
                mapping[section] = _entries(section, value)
            else:
                mapping[section] = value.model_dump() if isinstance(value, Model) else value
        return mapping

    def differing(self, other: Page) -> list[str]:
        """Name the keys, by dotted path, of which another page says something else."""
        return list(_differing(self.to_mapping(), other.to_mapping()))

    def to_yaml(self) -> str:
        """Write the resolved page; `load` reads it back to an equal one."""
        return strict_yaml.dump(self.to_mapping())


def _differing(own: dict[str, Any], other: dict[str, Any], path: str = "") -> Iterator[str]:
    for key in {**own, **other}:
        one, two = own.get(key), other.get(key)
        if isinstance(one, dict) and isinstance(two, dict):
            yield from _differing(one, two, f"{path}{key}.")
        elif one != two:
            yield f"{path}{key}"


def _entries(section: str, entries: Entries) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for name, entry in entries.items():
        extras = {key: getattr(entry, key) for key in EXTRAS.get(SECTIONS[section], ())}
        if section == "observations":
            extras = {key: value for key, value in extras.items() if value != Entry.model_fields[key].default}
        term = {} if entry.term == name else {"term": entry.term}
        mapping[name] = {**term, **extras, **entry.params}
    return mapping
