"""From a run to its policy: load, evaluate, export."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from embodied_rl.config import Page, config_names, override
from embodied_rl.config import load as load_page
from embodied_rl.deploy.export import export
from embodied_rl.deploy.rehearsal import EPISODES
from embodied_rl.env import Env
from embodied_rl.errors import UserError
from embodied_rl.learn import checkpoint
from embodied_rl.learn.evaluate import SEEDS, evaluate, evaluation_page
from embodied_rl.learn.learner import learner_class, naming_own
from embodied_rl.learn.policy import Player
from embodied_rl.learn.run import Run, RunError, find_run
from embodied_rl.make_env import make
from embodied_rl.mdp.curricula import Moved, page_as_moved
from embodied_rl.mdp.score import Verdict, judged, score_of
from embodied_rl.vector_env import Obs
from embodied_rl.waiting import Waiting

log = logging.getLogger("embodied_rl")

#: What a page says of what its policy sees and moves.
POLICY_KEYS = ("task", "robot", "scene.", "physics.dt", "physics.decimation", "actions.", "observations.actor.", "commands.")
#: Keys that are named where two pages differ in many.
_FEW = 3


def evaluate_policy(
    page: Page, policy: Callable[[Obs], Tensor], *, seed: int = SEEDS[0], reference: bool = False, changes: Iterable[str] = ()
) -> dict[str, float]:
    """Measure a policy that was trained on a page: the figures of `embodied_rl.learn.evaluate.evaluate`.

    Args:
        page: as it was trained.
        policy: mean actions (N, A) of the observations.
        seed: one of `embodied_rl.learn.evaluate.SEEDS`.
        reference: in reference physics.
        changes: to what is judged, as of one of a score's stresses.

    Raises:
        UserError: the page has no task to be judged by.
    """
    evaluations = Evaluations(page, changes=changes)
    try:
        return evaluations(policy, {}, seed=seed, reference=reference)
    finally:
        evaluations.close()


class Judged(NamedTuple):
    """What an evaluation came to."""

    result: dict[str, Any]
    """In which physics, every figure, of which checkpoint: what is kept as JSON."""
    limits: dict[str, float]
    """Of those figures that have one."""
    verdict: Verdict


def evaluate_run(
    loaded: LoadedRun, page: Page | None = None, *, seed: int = 1, reference: bool = False, keep: bool = True
) -> Judged:
    """Evaluate a run's policy and judge it.

    Args:
        loaded: the policy.
        page: the one to evaluate it on, where it is not its own.
        seed: 1, 2 or 3.
        reference: in reference physics.
        keep: write the figures where the evaluations of its run lie.

    Raises:
        UserError: the page has no task to be judged by.
    """
    page = page or loaded.page
    figures = evaluate_policy(page, loaded.policy, seed=SEEDS[seed - 1], reference=reference)
    verdict, limits = judged(score_of(page), figures, reference)
    there = evaluation_page(page, SEEDS[seed - 1], reference=reference)
    physics = f"{'reference' if reference else 'training'}: engine {there.physics.engine}, "
    physics += f"dt {1000 * there.physics.dt:g} ms, collisions {there.scene.collisions}"
    result = {"physics": physics, **figures, "seed": seed}
    result |= {"checkpoint": str(loaded.checkpoint), "env_steps": loaded.env_steps}
    if keep:
        path = loaded.evaluation(seed, reference)
        keep_figures(path, result, path.parent.parent)
    return Judged(result, limits, verdict)


def keep_figures(path: Path, figures: dict[str, Any], place: Path) -> bool:
    """Write figures as JSON; whether it could be done, which is warned of by the place."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures, indent=2) + "\n")
    except OSError as error:
        log.warning("%s: the figures are not kept there (%s)", place, error.strerror)
        return False
    return True


class Evaluations:
    """Evaluations of policies of one page, one after the other.

    Environments are built once, and each time begin as then; those whose page curricula have changed are built anew.

    Args:
        page: the page that the policies are trained on.
        skip: how to do without them.
        changes: to what is judged.
    """

    def __init__(self, page: Page, skip: str = "", *, changes: Iterable[str] = ()) -> None:
        self._page, self._skip, self._changes = page, skip, tuple(changes)
        self._made: dict[tuple[int, bool], tuple[Env, dict[str, Tensor]]] = {}

    def __call__(self, policy: Callable[[Obs], Tensor], moved: Moved, *, seed: int, reference: bool) -> dict[str, float]:
        """Measure a policy: the figures of `embodied_rl.learn.evaluate.evaluate`.

        Args:
            policy: mean actions (N, A) of the observations.
            moved: what curricula had moved for it, by curriculum and path.
            seed: one of `embodied_rl.learn.evaluate.SEEDS`.
            reference: in reference physics.

        Raises:
            UserError: the page has no task to be judged by, or is none of its family.
        """
        where = "reference" if reference else "training"
        with Waiting(f"{self._page.name}: evaluating robots in {where} physics", self._skip) as waiting:
            score = score_of(self._page)
            env = self._at_its_beginning(moved, (*score.needs, *score.wants), seed, reference)
            try:
                return evaluate(env, policy, score, waiting)
            finally:
                env.drain_unstable()  # nobody asks what blew up

    def _at_its_beginning(self, moved: Moved, needs: tuple[str, ...], seed: int, reference: bool) -> Env:
        # few episodes of a small batch: compiling the step would take longer than it saves
        page = page_as_moved(self._page, moved)
        settings = override(evaluation_page(page, seed, reference=reference, changes=self._changes), ["env.compile=false"])
        made = self._made.get((seed, reference))
        if made and made[0].page != settings:
            made[0].close()
            made = None
        if made is None:
            env = make(settings, measure=needs)
            made = self._made[seed, reference] = env, env.snapshot(_rows(env))
        env, beginning = made
        with torch.inference_mode():
            env.restore(_rows(env), beginning)
        return env

    def close(self) -> None:
        """Free the environments."""
        for env, _ in self._made.values():
            env.close()
        self._made.clear()


def _rows(env: Env) -> Tensor:
    return torch.arange(env.num_envs, device=env.device)


def export_run(run: str | Path, output: Path | None = None, *, checkpoint: int | None = None, episodes: int = EPISODES) -> Path:
    """Write all that a robot needs of a run's policy into one folder; which.

    Args:
        run: as `load` takes it.
        output: the folder; default RUN/exported, of a packed policy runs/PAGE/shipped/exported.
        checkpoint: the iteration whose policy is meant; default the newest, or the one that `run` names.
        episodes: of the rehearsal in training's environment.

    Raises:
        UserError: there is no such run or checkpoint, or the exported network does not agree with torch.
    """
    if checkpoint is not None:
        found, _ = find_run(run, packed=True)
        if not (run := found.checkpoint(checkpoint)).is_file():
            numbers = ", ".join(str(int(path.stem.removeprefix("model_"))) for path in reversed(found.newest_checkpoints()))
            raise RunError(f"{found.path}: no checkpoint of iteration {checkpoint}; there are {numbers}")
    loaded = load(run)
    evaluated = {path.stem.partition(".")[2].replace("_", " "): _figures(path) for path in loaded.evaluations()}
    with Waiting(f"{loaded.run.path}: exporting, and rehearsing {episodes} episodes"):
        return export(
            loaded.policy.policy,
            loaded.page,
            output or loaded.run.products / "exported",
            git_commit=loaded.run.git_commit,
            evaluated=evaluated,
            episodes=episodes,
        )


def _figures(path: Path) -> dict[str, Any]:
    """Read what `eval` wrote.

    Raises:
        RunError: it has been written over.
    """
    try:
        figures = json.loads(path.read_text())
    except (OSError, ValueError):
        figures = None
    if not isinstance(figures, dict):
        raise RunError(f"{path}: holds no figures of an evaluation; remove it, or evaluate again")
    return figures


def find_export(name: str | Path) -> Path:
    """Find an exported folder, or a run's.

    Raises:
        UserError: there is no such run.
    """
    path = Path(name)
    if (path / "policy.onnx").is_file() or (path.is_dir() and not (path / "config.yaml").is_file()):
        return path
    return find_run(name, packed=True)[0].products / "exported"


@dataclass
class LoadedRun:
    """A trained policy and the page it was trained on."""

    page: Page
    """As the policy would go on with it: what curricula had moved is written in it, and they are gone."""
    run: Run
    checkpoint: Path
    policy: Player
    """Mean actions, (N, A), of the observations of the group `actor`, (N, O), or of a dict of groups."""
    iteration: int
    env_steps: int

    def evaluation(self, seed: int, reference: bool) -> Path:
        """Where the figures of an evaluation of this policy are written, on one of the seeds 1, 2 and 3."""
        physics = "reference_physics" if reference else "training_physics"
        return self.run.products / "evaluations" / f"{self.checkpoint.stem}.{physics},_seed_{seed}.json"

    def evaluations(self) -> list[Path]:
        """List the evaluations of this policy that lie in its run, those in training physics first.

        What was made of a packed policy is none of them: it may have been of the one that shipped before.
        """
        made = (self.evaluation(seed, reference) for reference in (False, True) for seed in range(1, len(SEEDS) + 1))
        return [path for path in (self.run.path / "evaluations" / one.name for one in made) if path.is_file()]


def load(run: str | Path, *, device: str = "cpu") -> LoadedRun:
    """Load a run's policy, or a packed one, and say so; see `embodied_rl.load`.

    A damaged newest checkpoint is passed over with a warning.
    """
    found, named = find_run(run, packed=True)
    page = found.page if found.label is None else _packed_page(found)  # first: what is wrong with it is the one thing to say
    path, state = _newest(found, named, device)
    learner = learner_class(page)
    try:
        with naming_own(page, learner.load_policy):
            policy = learner.load_policy(page, state, device)
    except (KeyError, RuntimeError, IndexError):
        raise checkpoint.CheckpointError(f"{path}: its actor is not the one that {found.path}/config.yaml describes") from None
    page = page_as_moved(page, state.get("curricula") or {})
    steps = int((state.get("infos") or {}).get("env_steps", 0))
    return LoadedRun(page, found, path, Player(policy), int(state["iter"]), steps)


def _packed_page(run: Run) -> Page:
    """Read the page of a packed policy, and say what it is that plays.

    Raises:
        RunError: this version has no such page.
    """
    label = run.label or {}
    name = label.get("page", run.path.name)
    told = f"trained on {label.get('date')} at commit {label.get('commit')}"
    try:
        page = run.page
    except UserError as error:
        reason = str(error).partition("\n")[0]
        raise RunError(
            f"{name}: the policy that ships was {told}, and this version does not read its page ({reason}); train one of your "
            f"own: embodied-rl train {name}"
        ) from None
    today = load_page(name) if name in config_names() else page
    changed = [key for key in page.differing(today) if key.startswith(POLICY_KEYS)]
    since = f"; its page then said otherwise of {', '.join(changed[:_FEW])}, which holds here" if changed else ""
    steps = f"{label.get('env_steps', 0):,} steps"
    log.info("%s: the policy that ships, %s, %s; a run of your own goes before it%s", name, steps, told, since)
    return page


def _newest(run: Run, named: Path | None, device: str) -> tuple[Path, dict]:
    """Read the checkpoint that was named, or the newest one that can be read."""
    candidates = [named] if named else run.newest_checkpoints()
    if not candidates:
        raise RunError(f"{run.path}: no checkpoint yet")
    for path in candidates:
        try:
            return path, checkpoint.read(path, device)
        except checkpoint.CheckpointError as error:
            if path == candidates[-1]:
                raise
            log.warning("%s", error)
    raise AssertionError("unreachable")
