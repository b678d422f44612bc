"""One command, `embodied-rl <verb>`.  Nothing heavy is imported until a verb needs it."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embodied_rl import __version__
from embodied_rl.arguments import Parser, add_page, add_where, chosen, length_of_time, refuse_unwritable
from embodied_rl.errors import UserError
from embodied_rl.startup import importing
from embodied_rl.waiting import Waiting

if TYPE_CHECKING:
    from embodied_rl.learn.train import Trainer


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit code: 0 well, 2 a mistake in what was asked for, 1 a failure."""
    # OpenMP's threads spin for some 300,000 turns before they sleep; on a machine that is shared that takes the cores from
    # whoever has work.  Read when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    # one of a job's processes speaks for all
    logging.basicConfig(level=logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR, format="%(message)s")
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    # overrides may stand after options, which argparse cannot say of a list
    unknown = [one for one in rest if one.startswith("-") or "overrides" not in options]
    if unknown:
        getattr(options, "parser", parser).refuse(unknown)
    if rest:
        options.overrides = [*options.overrides, *rest]
    if not hasattr(options, "verb"):
        parser.print_help()
        return 2
    if "=" in (getattr(options, "config", None) or ""):  # an override where the page may be left out
        options.config, options.overrides = None, [options.config, *options.overrides]
    if options.verb is _bench and options.config is None:
        options.config = "go2_flat"
    if options.verb is _train and options.config is None and options.resume in (None, "auto"):
        parser.error("the following arguments are required: CONFIG (a run that is resumed by its name knows its own)")
    try:
        refuse_unwritable(options)
        code = options.verb(options) or 0
        sys.stdout.flush()
        return code
    except UserError as error:
        _tell(error)
        return 2
    except SystemExit as end:  # no verb ends so; the code of a person does, perhaps as if all were well
        if end.code not in (None, 0):
            raise
        print("the process was ended from within, by sys.exit() in code of your own, before this was done", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `embodied-rl eval | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _tell(error: UserError) -> None:
    """Once, if several processes of a job have the same to say."""
    if "RANK" in os.environ:
        from embodied_rl.learn.ranks.group import reports

        if not reports(error):
            return
    print(error, file=sys.stderr)


def _parser() -> Parser:
    parser = Parser(prog="embodied-rl", description="Train legged robots from one YAML page.")
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(title="verbs", metavar="VERB")

    train = _verb(verbs, "train", _train, "train a page")
    add_page(train, "a run that is resumed has its own")
    train.add_argument("--iterations", type=int, metavar="K", help="train.iterations=K: in all, resumed ones included")
    add_where(train)
    train.add_argument("--run-dir", type=Path, metavar="DIR", help="where the run is written; default runs/CONFIG/TIME")
    train.add_argument("--resume", metavar="RUN", help="go on from a run, a checkpoint, `latest`, or `auto`: if there is one")

    play = _verb(verbs, "play", _play, "film a policy, or watch a page without one")
    play.add_argument("run", nargs="?", default="latest", metavar="RUN", help="run, checkpoint, `latest`, or a page")
    play.add_argument("overrides", nargs="*", metavar="key=value")
    play.add_argument("--video", type=Path, metavar="FILE.mp4", help="film to this .mp4, .mkv or .mov, without a window")
    play.add_argument("--command", type=float, nargs="+", metavar="X", help="hold this command, in the task's order and units")
    play.add_argument("--seconds", type=length_of_time, help="how long; default 20, and a window until it is closed")
    play.add_argument("--num-envs", type=int, default=1, metavar="N", help="robots, side by side")
    play.add_argument("--agent", choices=("zero", "random"), help="play a page with this agent, without a run")

    evaluate = _verb(verbs, "eval", _eval, "measure how well a run does its task")
    evaluate.add_argument("run", nargs="?", default="latest", metavar="RUN")
    evaluate.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    evaluate.add_argument("--reference", action="store_true", help="in reference physics: full collisions, dt 2 ms")
    evaluate.add_argument("--seed", type=int, choices=(1, 2, 3), default=1, help="which of the evaluation's seeds")
    evaluate.add_argument("--engine", help="the engine to play in")
    evaluate.add_argument("--robustness", action="store_true", help="under pushes, payloads and little friction besides")

    export = _verb(verbs, "export", _export, "write all that a robot needs of a run's policy into one folder")
    export.add_argument("run", nargs="?", default="latest", metavar="RUN")
    export.add_argument("--output", type=Path, metavar="DIR", help="default RUN/exported")
    export.add_argument("--checkpoint", type=int, metavar="N", help="the policy of iteration N; default the newest")

    sim2sim = _verb(verbs, "sim2sim", _sim2sim, "drive an exported policy in plain MuJoCo, in any model of its robot")
    sim2sim.add_argument(
        "export", nargs="?", default="latest", metavar="EXPORT", help="a folder that `export` wrote, or a run with one"
    )
    sim2sim.add_argument("--model", type=Path, metavar="FILE.xml", help="an MJCF of the robot; default training's own model")
    sim2sim.add_argument("--keep-motors", action="store_true", help="leave the model's own servos, with their gains")
    sim2sim.add_argument("--golden", action="store_true", help="compare run_policy.py with golden.npz, term by term, instead")
    sim2sim.add_argument("--episodes", type=int, metavar="K", help="how many of the rehearsal's episodes; default all")
    sim2sim.add_argument("--video", type=Path, metavar="FILE.mp4", help="film the first episode")
    sim2sim.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")

    listing = _verb(verbs, "list", _list, "list pages, task families, robots and terms")
    listing.add_argument(
        "--terms", metavar="SECTION", nargs="?", const="all", help="the terms of a section, with their parameters"
    )

    view = _verb(verbs, "view", _view, "open a robot or a page in MuJoCo's viewer")
    view.add_argument("what", metavar="ROBOT|CONFIG")
    view.add_argument("--png", type=Path, metavar="FILE.png", help="draw instead the ground of a page from above")
    view.add_argument(
        "--report", action="store_true", help="print instead what is simulated otherwise than the robot's file says, and why"
    )

    new = _verb(verbs, "new", _new, "make a robot's folder and a page that trains it from its URDF or MJCF")
    new.add_argument("kind", choices=("robot",), help="what is made")
    new.add_argument("file", type=Path, metavar="FILE", help="the robot's URDF or MJCF")
    new.add_argument("--output", type=Path, metavar="DIR", help="the folder; default: named as the file, here")
    new.add_argument("--png", type=Path, metavar="FILE.png", help="draw it standing, with joints, feet and sides marked")

    check = _verb(verbs, "check", _check, "open a page, and say what is wrong with it or what a training takes")
    add_page(check)
    check.add_argument(
        "--print", action="store_true", help="print the page with every default, and the robot as it is simulated, as YAML"
    )

    audit = _verb(verbs, "audit", _audit, "what robots that do not do their task earn on a page, before it is trained")
    add_page(audit)
    audit.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    audit.epilog = "Warnings are of what the page pays for; the exit status is 0 with them, too."

    schema = _verb(verbs, "schema", _schema, "print the JSON schema of pages or of robot.yaml, for editors")
    schema.add_argument("kind", nargs="?", choices=("page", "robot"), default="page", help="of what; default page")
    _verb(verbs, "doctor", _doctor, "what works on this machine, and how to get the rest")

    pool = _verb(verbs, "pool", _pool, "how a run's pool of simulators is")
    pool.add_argument("what", choices=("status",), help="nodes, shards, throughput, waits")
    pool.add_argument("run", nargs="?", default="latest", metavar="RUN")

    bench = _verb(verbs, "bench", _bench, "measure speed")
    measures = ("env", "learner", "pool", "train", "walk")
    bench.add_argument("what", choices=measures, help="what is measured; see docs/performance.md")
    add_page(bench, "default go2_flat")
    add_where(bench)
    bench.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    return parser


def _verb(verbs: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(verb=run, parser=parser)
    return parser


def _train(options: argparse.Namespace) -> int:
    if options.iterations is not None:
        if options.iterations < 1:
            raise UserError(f"--iterations {options.iterations}: at least 1")
        # also what schedules go over
        options.overrides = [*options.overrides, f"train.iterations={options.iterations}"]
    config = options.config or ""  # a run that is resumed knows its own
    try:
        if config:
            from embodied_rl.config import load

            load(config, options.overrides)  # a mistake on the page shows before torch is imported
    except UserError:
        if options.resume and Path(config).name == "config.yaml":  # a run's own, perhaps of an earlier version
            from embodied_rl.learn.run import Run

            Run(Path(config).parent).check_version()
        raise
    if options.resume not in (None, "auto") and options.run_dir:
        raise UserError("--run-dir: a resumed run goes on in its own directory; leave out one of --resume and --run-dir")
    with Waiting(f"opening {config or options.resume}"):
        with importing():
            from embodied_rl import make_env, training

        where = chosen(options)
        if options.resume:
            trainer = training.resume(options.resume, config or None, options.overrides, path=options.run_dir, **where)
        else:
            trainer = training.start(make_env.resolve(config, options.overrides, **where), options.run_dir)
    return _run(trainer)


def _run(trainer: Trainer) -> int:
    """Train to the end, or until asked to stop; says how to go on."""
    from embodied_rl.learn.report import Report
    from embodied_rl.mdp.score import failures_of

    total, logger, start = trainer.page.train.iterations, trainer.page.train.logger, trainer.iteration
    path, group = trainer.run.path, trainer.group
    speaks = group.rank == 0
    if speaks:
        ranks = f" on {group.size} ranks" if group.size > 1 else ""
        print(f"{trainer.page.name}: {trainer.num_envs} robots{ranks}, {total} iterations, in {path}", flush=True)
    words = failures_of(trainer.page), trainer.learner.panel
    with Report(path, total, start, logger, *words) if speaks else nullcontext() as report:
        for _ in trainer.train(total, report):
            pass
    group.close()
    if speaks and trainer.stopped:
        print(f"stopped after {trainer.iteration} iterations; go on with: embodied-rl train --resume {path}")
    elif speaks:
        done = f"done: {trainer.env_steps:,} steps in {trainer.seconds:.0f} s"
        if passed := trainer.passed:
            done = f"{passed.sentence}: passed after {passed.env_steps:,} steps, {passed.seconds:.0f} s"
            path = path / "best"  # the policy that passed: the newest is a later one
        elif trainer.page.train.stop_when == "passed" and trainer.iteration > start:
            done += "; it has not passed"
        if trainer.page.env.source:  # another's environment, which we can neither measure nor draw
            print(f"{done}; the policy: embodied_rl.load({str(path)!r}).policy")
        else:
            verbs = [f"eval {path}"] if trainer.page.task else []  # without a task there is nothing to judge it by
            first, *others = (f"embodied-rl {verb}" for verb in (*verbs, f"play {path} --video film.mp4"))
            print(f"{done}; next: {first}", *(f"      {other}" for other in others), sep="\n")
    return 0


def _play(options: argparse.Namespace) -> int:
    seconds = options.seconds or 20.0
    with Waiting(f"opening {options.run}"):
        from embodied_rl import make_env, runs
        from embodied_rl.config import load, override
        from embodied_rl.view.film import container_of
        from embodied_rl.view.play import agent, play, playback_page
        from embodied_rl.view.viewer import view_env

        if options.video:
            container_of(options.video)  # a wrong name shows before anything runs
        loaded = None if options.agent else runs.load(options.run)
        page = override(loaded.page, options.overrides) if loaded else load(options.run, options.overrides)
        env = make_env.make(playback_page(page, num_envs=options.num_envs, seconds=seconds if options.video else 3600.0))
        policy = loaded.policy if loaded else agent(env, options.agent)
    if options.video:
        play(env, policy, seconds=seconds, command=options.command, video=options.video)
    else:
        view_env(env, policy, command=options.command, seconds=options.seconds)
    return 0


def _eval(options: argparse.Namespace) -> int:
    with Waiting(f"opening {options.run}"):
        from embodied_rl import make_env, runs
        from embodied_rl.mdp.score import report_lines, score_of
        from embodied_rl.robustness import stress, stresses_of

        loaded = runs.load(options.run)
    page = make_env.resolve(loaded.page, engine=options.engine)
    stresses = stresses_of(page) if options.robustness else {}
    # what is kept is of the run's own physics, or of the reference ones
    same = {"seed": options.seed, "reference": options.reference, "keep": options.engine is None}
    result, limits, verdict = runs.evaluate_run(loaded, page, **same)
    for line in report_lines(score_of(page), result, limits):
        print(line)
    print(verdict.sentence)
    if stresses:
        result["stressed"] = stress(loaded, page, stresses, result, list(limits), **same)
    _write_json(options.json, result)
    return 0


def _export(options: argparse.Namespace) -> int:
    with Waiting(f"opening {options.run}"):
        from embodied_rl import runs

        folder = runs.export_run(options.run, options.output, checkpoint=options.checkpoint)
    print(f"{folder}; next: embodied-rl sim2sim {folder}")
    return 0


def _sim2sim(options: argparse.Namespace) -> int:
    from embodied_rl import runs
    from embodied_rl.deploy import report
    from embodied_rl.view.film import container_of

    if options.video:
        container_of(options.video)
    if options.episodes is not None and options.episodes < 1:
        raise UserError(f"--episodes {options.episodes}: at least 1")
    if options.keep_motors and options.model is None:
        raise UserError("--keep-motors: training's own model has no motors but the contract's; name another --model")
    folder = runs.find_export(options.export)
    if options.golden:
        for name in ("keep_motors", "episodes", "video", "json"):
            if getattr(options, name):
                raise UserError(
                    f"--{name.replace('_', '-')}: --golden compares numbers and drives nothing; leave one of them out"
                )
        return report.golden(folder, options.model)
    result = report.sim2sim(folder, options.model, options.keep_motors, options.episodes, options.video)
    _write_json(options.json, result)
    return 0


def _list(options: argparse.Namespace) -> int:
    from embodied_rl import listing

    print(*(listing.names() if options.terms is None else listing.terms(options.terms)), sep="\n")
    return 0


def _view(options: argparse.Namespace) -> int:
    if options.report:
        with importing():
            from embodied_rl.inspection import report_of

        found = report_of(options.what)
        print(found)
        return int(bool(found.unexplained))
    if options.png:
        from embodied_rl.config import load
        from embodied_rl.view.ground import draw_map

        draw_map(load(options.what), options.png)
        return 0
    from embodied_rl.robot import find_robot
    from embodied_rl.view import viewer

    if robot := find_robot(options.what):
        viewer.view_robot(robot)
    else:
        from embodied_rl import make_env
        from embodied_rl.config import load
        from embodied_rl.view.play import playback_page

        viewer.view_env(make_env.make(playback_page(load(options.what), seconds=3600.0)))
    return 0


def _new(options: argparse.Namespace) -> int:
    from embodied_rl.new.robot import new_robot

    print(*new_robot(options.file, options.output, options.png), sep="\n")
    return 0


def _check(options: argparse.Namespace) -> int:
    with importing():
        from embodied_rl.config import load
        from embodied_rl.config.privileged import warnings_of

        page = load(options.config, options.overrides)  # what is wrong in the text is told before anything heavy is loaded
        from embodied_rl import inspection

        found = inspection.inspect(page)
    for line in (*warnings_of(page), *inspection.warnings_of(page, found)):
        print(line, file=sys.stderr)
    if options.print:
        print(page.to_yaml(), *(f"# {line}\n" for line in found.robot), sep="", end="")
    print(f"{found.summary(page)}\n{page.name}: ok", file=sys.stderr if options.print else sys.stdout)
    return 0


def _audit(options: argparse.Namespace) -> int:
    with Waiting(f"opening {options.config}"), importing():
        from embodied_rl import audit
        from embodied_rl.config import load

        page = load(options.config, options.overrides)
    with Waiting(f"{page.name}: trying what it pays"):
        found = audit.audit(page)
    print(*found.lines(), sep="\n")
    _write_json(options.json, found.figures())
    return 0


def _schema(options: argparse.Namespace) -> int:
    if options.kind == "robot":
        from embodied_rl.robot.json_schema import json_schema
    else:
        from embodied_rl.config.json_schema import json_schema

    print(json.dumps(json_schema(), indent=2))
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from embodied_rl import doctor

    return doctor.main()


def _pool(options: argparse.Namespace) -> int:
    from embodied_rl.learn.run import find_run
    from embodied_rl.pools.status import read_status, shown

    run, _ = find_run(options.run, trained=False)  # one that has just begun, too
    print("\n\n".join(map(shown, read_status(run.path))))
    return 0


def _bench(options: argparse.Namespace) -> int:
    from embodied_rl import make_env
    from embodied_rl.bench import env, learner, pool, train, walk

    where = chosen(options)
    page = make_env.resolve(options.config, options.overrides, **where)
    measures = {"env": env.bench_env, "learner": learner.bench_learner, "pool": pool.bench_pool}
    measures |= {"train": train.bench_train, "walk": walk.bench_walk}
    with Waiting(f"{page.name}: measuring {options.what}"):
        result = measures[options.what](page)
    if os.environ.get("RANK", "0") != "0":  # started by torchrun: the first speaks for all
        return 0
    for name, value in result.items():
        print(f"{name:28s} {value:,.3f}" if isinstance(value, float) else f"{name:28s} {value}")
    _write_json(options.json, result)
    return 0


def _write_json(path: Path | None, result: dict) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2) + "\n")
