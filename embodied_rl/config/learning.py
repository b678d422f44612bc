"""What the sections that say how a policy learns need of each other, which no field can know alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from embodied_rl.config.learner_numbers import why_not
from embodied_rl.config.page import TrainSettings
from embodied_rl.config.pool import PoolSettings
from embodied_rl.config.ppo import PPOSettings
from embodied_rl.problems import shown
from embodied_rl.strict_yaml import Keys

#: Notes what is wrong with a key of the page.
Problems = Callable[[Keys, str], None]

#: Ours that learn from rollouts, fresh ones or stale, and read the section `ppo`.
_OF_ROLLOUTS = ("ppo", "impala")
#: Settings of `ppo` that IMPALA does not read, and why.
_NOT_IMPALAS = {
    "num_learning_epochs": "makes one pass over a rollout",
    "reshuffle": "makes one pass over a rollout",
    "clip_param": "clips no ratio to the policy before",
    "use_clipped_value_loss": "clips no value",
    "normalize_advantage": "finds advantages anew in every minibatch",
}


def check_learning(parts: Mapping[str, Any], problem: Problems) -> None:
    """Check `train`, `ppo`, `pool` and `curriculum` of a page against each other.

    Args:
        parts: the page's sections, each None where something is wrong with it already.
        problem: is told of each key and what is wrong with it.
    """
    _check_sac(parts, problem)
    _check_overlap(parts, problem)
    _check_pool(parts, problem)
    _check_schedules(parts["ppo"], problem, ours=parts["train"] is not None and parts["train"].learner in _OF_ROLLOUTS)
    _check_impala(parts, problem)
    _check_curricula(parts, problem)


def _check_sac(parts: Mapping[str, Any], problem: Problems) -> None:
    """Check what soft actor-critic needs of the rest of the page, and that nothing is said which it does not read."""
    sac, train, env, pool = (parts[name] for name in ("sac", "train", "env", "pool"))
    if not (sac and train and env and pool):
        return
    default, learns = type(sac)(), train.learner == "sac"
    said = [key for key in type(sac).model_fields if getattr(sac, key) != getattr(default, key)]
    if not learns:
        for key in said:
            problem(("sac", key), "only read with train.learner: sac; leave it out")
        return
    of_distribution = (sac.critic == "distributional", "critic: distributional")
    reads = {
        "atoms": of_distribution,
        "value_range": (of_distribution[0] or sac.scale_rewards, "critic: distributional or scale_rewards: true"),
        "priority_exponent": (sac.prioritized, "prioritized: true"),
        "importance_exponent": (sac.prioritized, "prioritized: true"),
        "insert_tolerance": (sac.samples_per_insert is not None, "samples_per_insert"),
        "ladder_noise": (pool.mode == "apex", "pool.mode: apex"),
        "ladder_exponent": (pool.mode == "apex", "pool.mode: apex"),
    }
    for key in (key for key in said if not reads.get(key, (True, ""))[0]):
        problem(("sac", key), f"{shown(getattr(sac, key))} is only read with {reads[key][1]}; leave it out")
    groups = parts["observations"] if parts.get("observations") is not None else env.groups or {"actor": ()}
    wanted = [group for group in ("actor", "critic") if group in groups]
    if missing := [group for group in wanted if group not in env.final_obs_groups]:
        given, all_ = ", ".join(env.final_obs_groups), ", ".join(wanted)
        problem(
            ("env", "final_obs_groups"),
            f"[{given}]: train.learner: sac asks what the policy would have done in the last observation of a time-out, and has "
            f"none of {', '.join(missing)}; write final_obs_groups: [{all_}]",
        )
    if pool.inference == "central":
        problem(("pool", "inference"), "'central' is for learners of rollouts; with train.learner: sac take inference: local")
    if pool.has_processes and pool.mode == "async":
        problem(("pool", "mode"), '"async" hands out shards of any robots, and a replay has a lane of each; take apex')
    for name, entry in (parts.get("curriculum") or {}).items():
        if str(entry.params.get("parameter", "")).startswith("ppo."):
            problem(("curriculum", name, "parameter"), "train.learner: sac follows no curriculum; leave it out")


def _check_overlap(parts: Mapping[str, Any], problem: Problems) -> None:
    """Check what collecting during the update needs of the rest of the page."""
    train, pool = parts["train"], parts["pool"]
    if train and pool:
        wanted = {"correction": "", "importance_clip": ", and correction: decoupled"}
        # also where the workers are taken away, as a pool's own processes have the page
        stale = train.overlap or pool.is_stale
        for key, also in wanted.items():
            given, default = getattr(train, key), TrainSettings.model_fields[key].default
            read = stale and train.learner == "ppo" and not (also and train.correction != "decoupled")
            if not read and given != default:
                where = "train.overlap: true, pool.mode: overlap or async, or pool.lag, by learner: ppo"
                message = f"{shown(given)} is only read with {where}{also}"
                problem(("train", key), f"{message}; leave it out, or at {shown(default)}")
    if not (train and train.overlap):
        return
    if pool and pool.has_processes:
        return problem(("train", "overlap"), "true: of a pool it is pool.mode: overlap; leave the key out")
    _check_stale(parts, problem, ("train", "overlap"), "true", "overlap: false")


def _check_stale(parts: Mapping[str, Any], problem: Problems, path: Keys, given: str, other: str) -> None:
    """Check what learning from an older policy needs, which `given` at `path` asks for and `other` does without."""
    train, ppo = parts["train"], parts["ppo"]
    if train and train.learner not in _OF_ROLLOUTS:
        problem(path, f"{given} needs train.learner: ppo or impala, which weigh stale actions; take {other}")
    elif train and ppo and train.correction == "decoupled" and ppo.normalize_advantage == "minibatch":
        problem(path, f"{given} needs ppo.normalize_advantage: rollout or none; set it, or take {other}")


def _check_impala(parts: Mapping[str, Any], problem: Problems) -> None:
    """Check that nothing is set which IMPALA does not read."""
    train, ppo = parts["train"], parts["ppo"]
    if not (train and ppo) or train.learner != "impala":
        return
    for key, why in _NOT_IMPALAS.items():
        given, default = getattr(ppo, key), PPOSettings.model_fields[key].default
        if given != default:
            message = f"{shown(given)} is not read by train.learner: impala, which {why}"
            problem(("ppo", key), f"{message}; leave it out, or at {shown(default)}")
    if ppo.symmetry == "mirror_loss":
        problem(("ppo", "symmetry"), '"mirror_loss" is not there with train.learner: impala; take augmentation, or none')


def _check_schedules(ppo: PPOSettings | None, problem: Problems, *, ours: bool) -> None:
    """Check that what a schedule needs is there, and that nothing is which `ours`, PPO, does not read."""
    if ppo is None:
        return
    if ppo.final_learning_rate is not None and ppo.schedule not in ("linear", "hold"):
        message = f"{ppo.final_learning_rate:g} is never come to with schedule: {ppo.schedule}; take linear or hold"
        problem(("ppo", "final_learning_rate"), f"{message}, or leave it out")
    if ppo.final_entropy_coef is not None and ppo.entropy_schedule == "constant":
        message = f"{ppo.final_entropy_coef:g} is never come to with entropy_schedule: constant; take linear or hold"
        problem(("ppo", "final_entropy_coef"), f"{message}, or leave it out")
    if ppo.entropy_schedule == "hold" and ppo.final_entropy_coef is None:
        problem(("ppo", "entropy_schedule"), '"hold" needs final_entropy_coef, where it ends; add it, or take constant')
    unread = {
        "desired_kl": (ppo.schedule == "adaptive", "schedule: adaptive"),
        "mirror_loss_coeff": (ppo.symmetry == "mirror_loss", "symmetry: mirror_loss"),
        "rnn_hidden_dim": (ppo.rnn_type != "none", "rnn_type: gru or lstm"),
        "rnn_num_layers": (ppo.rnn_type != "none", "rnn_type: gru or lstm"),
    }
    for key, (read, where) in unread.items() if ours else ():
        value, default = getattr(ppo, key), PPOSettings.model_fields[key].default
        if not read and value != default:
            problem(("ppo", key), f"{shown(value)} is only read with {where}; leave it out, or at {default:g}")
    if "hold" not in (ppo.schedule, ppo.entropy_schedule) and ppo.hold != PPOSettings.model_fields["hold"].default:
        problem(("ppo", "hold"), "only read with schedule: hold or entropy_schedule: hold; leave it out")


def _check_curricula(parts: Mapping[str, Any], problem: Problems) -> None:
    """Check curricula whose `parameter` is a number of the learner's."""
    entries, ppo, distributed = parts.get("curriculum"), parts["ppo"], parts["distributed"]
    for name, entry in entries.items() if entries and ppo and distributed else ():
        path = entry.params.get("parameter")
        if not isinstance(path, str) or not path.startswith("ppo."):
            continue
        if why := why_not(path, ppo, distributed):
            problem(("curriculum", name, "parameter"), f"{shown(path)} {why}")
        for key in (key for key in ("start", "end") if key in entry.params):
            if any(number < 0 for number in entry.params[key]):
                problem(("curriculum", name, key), f"{shown(entry.params[key])} is negative, which {path} cannot be")


def _check_pool(parts: Mapping[str, Any], problem: Problems) -> None:
    """Check what the pool's mode needs of the rest of the page."""
    pool, env, physics = (parts[name] for name in ("pool", "env", "physics"))
    if not (pool and env and physics) or pool.workers is None:
        return
    if physics.engine != "native":
        problem(("physics", "engine"), f"{shown(physics.engine)} runs where the learner does; a pool needs engine: native")
    if pool.mode != "sync" and not pool.has_processes:
        other = ", or train.overlap: true with it" if pool.mode == "overlap" else ""
        message = f"{shown(pool.mode)} needs simulators in processes of their own, and address: none has none; take mode: sync"
        problem(("pool", "mode"), message + other)
    elif pool.mode == "gradients":
        _check_gradients(parts, problem)
    elif pool.mode == "apex":
        if parts["train"] and parts["train"].learner != "sac":
            problem(("pool", "mode"), '"apex" fills the replay of train.learner: sac; take that, or mode: async')
    elif pool.mode != "sync":
        _check_stale(parts, problem, ("pool", "mode"), shown(pool.mode), "mode: sync")
    _check_inference(pool, problem)
    _check_lag(parts, problem)
    if env.source and env.source.startswith("envpool:") and pool.on_crash == "replay":
        why = "'replay' needs environments that can be brought back to where they were, and EnvPool's cannot"
        problem(("pool", "on_crash"), f"{why}; take mask or raise")


def _check_inference(pool: PoolSettings, problem: Problems) -> None:
    """Check what `pool.inference` needs of the rest of the pool, and that nothing is which it does not read."""
    if pool.inference == "local":
        if pool.inference_wait_s is not None:
            message = f"{pool.inference_wait_s:g} is only read with inference: central; leave it out"
            problem(("pool", "inference_wait_s"), message)
        return
    if pool.mode not in ("sync", "async"):
        problem(("pool", "inference"), '"central" is there with mode: sync or async; take one of them, or inference: local')
    if pool.on_crash == "mask":
        problem(("pool", "on_crash"), "'mask' is not there with inference: central; take replay or raise")
    if pool.deadline_share is not None:
        message = f"{pool.deadline_share:g} is only read with inference: local, where workers are hurried; leave it out"
        problem(("pool", "deadline_share"), message)


def _check_gradients(parts: Mapping[str, Any], problem: Problems) -> None:
    """Check what workers that send gradients need: an update that is one step, whose second half is all that is left to do."""
    train, ppo, pool = parts["train"], parts["ppo"], parts["pool"]
    if train and train.learner != "ppo":
        problem(("pool", "mode"), '"gradients" needs train.learner: ppo, which learns in halves; take mode: sync')
    for key in ("num_learning_epochs", "num_mini_batches") if ppo else ():
        if (given := getattr(ppo, key)) != 1:
            problem(("ppo", key), f"{given} is not allowed with pool.mode: gradients: a worker's fragment is one step; take 1")
    if ppo and ppo.schedule == "adaptive":
        why = '"adaptive" follows the KL to the policy that acted, which is 0 with pool.mode: gradients'
        problem(("ppo", "schedule"), f"{why}; take constant, linear or hold")
    if ppo and ppo.stop_kl is not None:
        problem(("ppo", "stop_kl"), f"{ppo.stop_kl:g} is never reached with pool.mode: gradients, whose KL is 0; leave it out")
    for name, entry in (parts.get("curriculum") or {}).items():
        if entry.params.get("parameter") == "ppo.entropy_coef":
            other = "take ppo.final_entropy_coef, or another mode"
            problem(("curriculum", name, "parameter"), f'"ppo.entropy_coef" stays with pool.mode: {pool.mode}; {other}')


def _check_lag(parts: Mapping[str, Any], problem: Problems) -> None:
    """Check what handing out older policies needs: fragments that are all of one version, of workers that have their own."""
    pool = parts["pool"]
    if not pool.lag:
        return
    if pool.mode != "sync":
        problem(("pool", "lag"), f"{pool.lag} is exact with mode: sync alone, and mode: {pool.mode} is behind by itself; take 0")
    elif not pool.has_processes or pool.inference == "central":
        has = "inference: central" if pool.has_processes else "address: none"
        problem(("pool", "lag"), f"{pool.lag} needs policies in the workers, and {has} has none there; take 0")
    else:
        _check_stale(parts, problem, ("pool", "lag"), str(pool.lag), "lag: 0")
