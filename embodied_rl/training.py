"""From a page to a trainer, and how a run goes on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path

import torch
from torch import Tensor

from embodied_rl.config import Page, override
from embodied_rl.config import load as load_page
from embodied_rl.errors import UserError, install_hint
from embodied_rl.inspection import inspect, warnings_of
from embodied_rl.learn import checkpoint
from embodied_rl.learn.apart import ApartCollector, OverlapCollector
from embodied_rl.learn.cpu.team import own_cores
from embodied_rl.learn.evaluate import FIRST_SEED
from embodied_rl.learn.examiner import Examiner
from embodied_rl.learn.learner import Learner, learner_class, make_learner
from embodied_rl.learn.ranks.group import Group, join, launchers
from embodied_rl.learn.ranks.meeting import backend_of
from embodied_rl.learn.ranks.share import Scope, env_ids, learning_rate_factor, num_envs_scope, rank_device
from embodied_rl.learn.rollout import Collector, LocalCollector
from embodied_rl.learn.run import Run, RunError, find_run, runs_of
from embodied_rl.learn.train import Trainer
from embodied_rl.make_env import check_interpreter, compiler, device_of, identity, learner_device, make_vector, resolve
from embodied_rl.mdp.bind import startup_draws
from embodied_rl.mdp.curricula import Curricula
from embodied_rl.runs import Evaluations

log = logging.getLogger("embodied_rl")

#: What must be there for environments of others, by the kind of `env.source`.
_OF_SOURCES = {"gymnasium": ("gymnasium",), "dm_control": ("dm_control", "shimmy"), "envpool": ("envpool",)}

#: Keys that are named where two pages differ in many.
_FEW = 3

#: What says how the processes of a job meet, which they do before rank 0 has found the run that goes on.
_MEETING = ("physics.engine", "physics.device", "train.device", "pool.workers", "pool.address")
_MEETING += ("distributed.backend", "distributed.timeout_s")


def start(page: Page, path: Path | None = None) -> Trainer:
    """Make a trainer in a fresh run directory, which is written before anything is built.

    Where torchrun has started this process again after a failure, it goes on with the run that it began.

    Raises:
        UserError: the seed is one of evaluation's, there is no such device, or the directory holds a run already.
    """
    _check_seed(page)
    _check_device(page)
    _check_extras(page)
    group = _join(page)
    names = launchers(group)
    page, run, candidates = group.lead(lambda: _create(_inspected(page), path, names))
    return _go_on(make_trainer(page, run, group), candidates)


def resume(
    name: str,
    config: str | None = None,
    overrides: Iterable[str] = (),
    *,
    path: Path | None = None,
    num_envs: int | None = None,
    device: str | None = None,
    engine: str | None = None,
    seed: int | None = None,
) -> Trainer:
    """Make a trainer that goes on where a run stopped: on the run's own page, with what the command line changes.

    The changed page is the run's from then on.  The number of processes may be another one; several must be told again what
    the command line of the run's start said of how they meet.

    A damaged newest checkpoint is passed over with a warning.

    Args:
        name: a run directory, a checkpoint in one, `latest`, the page's newest that has a checkpoint, or `auto`: the run
            in `path`, or the page's newest, or a new one.
        config: the page's name or path; None: whatever the run's is, which `auto` does not know.
        overrides: see `embodied_rl.make`.
        path: the directory that `auto` looks at.
        num_envs: see `embodied_rl.make`.
        device: see `embodied_rl.make`.
        engine: see `embodied_rl.make`.
        seed: see `embodied_rl.make`.

    Raises:
        UserError: there is no such run, it is of another page, no checkpoint of it can be read, or the processes have met in
            another way than its page says.
    """
    fresh = load_page(config) if config is not None else find_run(name)[0].page
    resolved = lambda page: resolve(page, overrides, num_envs=num_envs, device=device, engine=engine, seed=seed)  # noqa: E731
    met = resolved(fresh)
    group = _join(met)
    names = launchers(group)

    def find() -> tuple[Page, Page, Run, list[Path]] | None:
        if name == "auto":
            known = runs_of(fresh.name) if path is None else [Run(path)]
            run, named = next((run for run in known if (run.path / "config.yaml").is_file()), None), None
            if run is None:
                return None
        else:
            run, named = find_run(name, fresh.name if config is not None else "*")
        before = run.page
        if config is not None and fresh.name != before.name:
            raise UserError(f"--resume {run.path}: that run is of the page {before.name}, not of {config}")
        page = resolved(before)
        _check_seed(page)
        _check_device(page)
        _check_extras(page)
        _check_meeting(run, page, met, group)
        run.lock()
        run.launchers = names
        # after a restart, what it had come to counts, and not where it once went on from
        candidates = [named] if named and not run.begun_by(names) else run.newest_checkpoints()
        if not candidates and name != "auto":
            raise RunError(f"{run.path}: no checkpoint yet")
        return before, page, run, candidates

    found = group.lead(find)
    if found is None:
        return start(met, path)
    before, page, run, candidates = found
    if group.rank == 0 and (differing := page.differing(met)):
        few = ", ".join(differing[:_FEW]) + (", ..." if len(differing) > _FEW else "")
        log.warning(
            "%s goes on with its own page, and %s differs in %s; what is to change, write as key.path=value",
            run.path,
            config,
            few,
        )
    made = [(one.robot, startup_draws(one)) for one in (before, page)]
    trainer = _go_on(make_trainer(page, run, group), candidates, robots=made[0] == made[1])
    if page != before and group.rank == 0:
        try:
            run.change(page)
        except OSError as error:
            raise RunError(f"{run.path}/config.yaml: cannot be written ({error.strerror}); resume without the changes") from None
    return trainer


def _create(page: Page, path: Path | None, names: list[str]) -> tuple[Page, Run, list[Path]]:
    """Begin a run, or find the one that these launchers began; its page, and checkpoints to go on from."""
    known = runs_of(page.name) if path is None else [Run(path)]
    begun = next((run for run in known if run.begun_by(names)), None)
    run = begun or Run.create(page, path)
    run.lock()
    run.launchers = names
    if begun:
        return begun.page, begun, begun.newest_checkpoints()
    run.note_launchers()
    return page, run, []


def _inspected(page: Page) -> Page:
    """Give back a page that can be trained; what is hardly meant is told.

    Raises:
        UserError: it cannot.
    """
    for line in warnings_of(page, inspect(page)):
        log.warning("%s", line)
    return page


def _go_on(trainer: Trainer, candidates: list[Path], *, robots: bool = True) -> Trainer:
    """Set a trainer, with its robots or without, to the first of some checkpoints that is whole, if there are any."""
    for path in candidates:
        try:
            state = trainer.group.lead(partial(checkpoint.read, path))
            trainer.resume(path, state, robots=robots)
            break
        except checkpoint.DamagedError as error:
            if path == candidates[-1]:
                raise
            log.warning("%s", error)
    return trainer


def _join(page: Page) -> Group:
    """Join the processes that train the page."""
    return join(page.distributed, lambda local_rank: _rank_device(page, local_rank))


def _rank_device(page: Page, local_rank: int) -> torch.device:
    """Pick the device of the learner of one of a machine's ranks."""
    key = "physics.device" if device_of(page).type == "cuda" else "train.device"
    return rank_device(learner_device(page), local_rank, page.distributed, key)


def _check_meeting(run: Run, page: Page, met: Page, group: Group) -> None:
    """Refuse a run for whose page these processes would have met in another way: they have met by the page `met`."""

    def meeting(page: Page) -> tuple[str, str, float]:
        device = _rank_device(page, group.local_rank)
        return str(device), backend_of(page.distributed, device), page.distributed.timeout_s

    if group.size == 1 or meeting(page) == meeting(met):
        return
    pairs = ((path, *(attrgetter(path)(one) for one in (page, met))) for path in _MEETING)
    repeat = [f"{path}={'null' if wanted is None else wanted}" for path, wanted, given in pairs if wanted != given]
    raise RunError(
        f"--resume {run.path}: its {group.size} processes met before its page was known, which differs from {met.name}'s in how "
        f"they meet; add to the command line: {' '.join(repeat)}"
    )


def _check_seed(page: Page) -> None:
    if page.env.seed >= FIRST_SEED:
        raise UserError(f"env.seed: {page.env.seed}: seeds from {FIRST_SEED} up are evaluation's; take a smaller one")


def _check_device(page: Page) -> None:
    """Refuse devices that are not there or do not go together."""
    robots, _ = device_of(page), learner_device(page)
    if page.train.overlap and robots.type == "cuda":
        raise UserError(
            f"train.overlap: true: the robots are on {robots}, where their steps and the update would wait for each other; leave "
            "the key out, or take physics.engine: native, whose robots are on the CPU"
        )


def _check_extras(page: Page) -> None:
    """Refuse a page that needs a package or interpreter which is not there, before a run is begun and Ray is started."""
    check_interpreter(page)
    wanted = {"ray": "pool.address"} if page.pool.has_processes else {}
    wanted |= {"wandb": "train.logger: wandb"} if page.train.logger == "wandb" else {}
    source = (page.env.source or "").partition(":")[0]
    wanted |= dict.fromkeys(_OF_SOURCES.get(source, ()), f"env.source: {page.env.source}")
    for module, key in wanted.items():
        if find_spec(module) is None:
            extra = {"gymnasium": "gym", "dm_control": "dmc", "shimmy": "dmc"}.get(module, module)
            other = {"ray": ", or take pool.address: none", "wandb": ", or leave the key out"}.get(module, "")
            raise UserError(f"{key}: {module} is not installed; {install_hint(extra)}{other}")


def _own_page(page: Page, group: Group, scope: Scope) -> Page:
    """Change a page to how one of several ranks runs it: its devices, its share of the cores, the job's learning rate."""
    if group.size == 1:
        return page
    robots, device = device_of(page), _rank_device(page, group.local_rank)
    factor = learning_rate_factor(page.distributed.learning_rate_rule, scope, group.size)
    end = page.ppo.final_learning_rate
    changes = [f"train.device={device}", f"ppo.learning_rate={page.ppo.learning_rate * factor}"]
    changes += [f"ppo.final_learning_rate={end * factor}"] if end is not None else []
    if robots.type == "cuda":
        changes.append(f"physics.device={device}")
    if page.physics.num_threads == 0 and group.local_size > 1 and not page.pool.has_processes:
        changes.append(f"physics.num_threads={own_cores()}")
    return override(page, changes)


def make_trainer(page: Page, run: Run, group: Group | None = None) -> Trainer:
    """Everything that trains the page, or one rank's part of it."""
    group = group or Group()
    curricula = group.together(lambda: _make_curricula(page))
    collector, learner = group.together(lambda: _make_parts(page, group, run))
    if group.size > 1:  # equal machines begin with equal networks, others do not
        learner.load_state_dict(checkpoint.unpack(group.lead(lambda: checkpoint.pack(learner.state_dict()))))
    return Trainer(page, collector, learner, curricula, run, group, group.together(lambda: _make_examiner(page, group)))


def _make_examiner(page: Page, group: Group) -> Examiner | None:
    """Make who evaluates the policy on the way, where the page wants it."""
    if page.train.evaluate_every is None and page.train.stop_when == "end":
        return None
    return Examiner(page, group, Evaluations(page, "train.stop_when=end and train.evaluate_every=null do without"))


def _make_curricula(page: Page) -> Curricula:
    """Make the page's curricula, as they are in the first iteration."""
    curricula = Curricula(page, learner_class(page).numbers)
    curricula.advance({}, 0)
    return curricula


def _make_parts(page: Page, group: Group, run: Run) -> tuple[Collector, Learner]:
    """Make this rank's robots, and its copy of the learner."""
    _check_device(page)
    scope = num_envs_scope(page, device_of(page))
    ids = env_ids(page.env.num_envs, scope, group.rank, group.size)
    page = _own_page(page, group, scope)
    rows = torch.arange(ids.start, ids.stop)
    if page.pool.has_processes:
        return _make_pooled(page, group, run, rows)
    env = make_vector(page, rows)
    symmetry = page.symmetry != "none"
    chunk = page.pool.shard_size if page.in_shards else None
    wrap = identity if page.env.source else compiler(page, env.device)
    steps, seed = page.train.steps, page.env.seed
    collector: Collector = LocalCollector(env, steps, seed, symmetry=symmetry, compiler=wrap, chunk=chunk)
    device = learner_device(page) if env.device.type == "cpu" else env.device
    if page.train.overlap:
        collector = OverlapCollector(collector, device)
    elif device.type != env.device.type:
        collector = ApartCollector(collector, device)
    learner = make_learner(page, collector, device, group, compiler=_learner_compiler(page, device))
    if learner.critic_group not in env.final_obs:
        env.close()
        given = f"[{', '.join(page.env.final_obs_groups)}]"
        raise UserError(
            f"env.final_obs_groups: {given}: training bootstraps time-outs from the last observation of "
            f"{learner.critic_group!r}; add it, or leave the key out"
        )
    return collector, learner


def _make_pooled(page: Page, group: Group, run: Run, rows: Tensor) -> tuple[Collector, Learner]:
    """Make a pool of this rank's robots, and its copy of the learner."""
    from embodied_rl.pools import make_collector
    from embodied_rl.pools.pool import SimPool

    of = f"_rank_{group.rank}" if group.size > 1 else ""
    device = learner_device(page)
    collector = make_collector(page, rows, device=device, status=run.path / f"pool{of}.json", world_size=group.size)
    learner = make_learner(page, collector, device, group, compiler=_learner_compiler(page, device))
    if isinstance(collector, SimPool):
        collector.serve(learner)
    return collector, learner


def _learner_compiler(page: Page, device: torch.device) -> Callable:
    """Choose what wraps the learner's arithmetic: nothing on the CPU, where the networks are one operation each."""
    return compiler(page, device) if device.type == "cuda" else identity
