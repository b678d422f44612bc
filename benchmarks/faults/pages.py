"""Breaks pages and robots at random, and sees whether `embodied-rl check` says so.

    python benchmarks/faults/pages.py [--count 600] [--seed 0] [--only N ...] [--json F]

Each mutation is one mistake in a page, in robot.yaml or in the robot's model file, MJCF or URDF: in its values, or in the text as
a hand or an editor leaves it (mutations.py).  A process of its own, forked from this one, checks the result.  It is then one of

- refused: exit status 2, and lines that say why and name the place;
- seen: `check --print` or `view --report` says something else than of the unbroken page;
- the same: the change means nothing (a name that nothing refers to, looks, an equal number): the robots do, see and are paid the
  same to the last bit;
- vague: refused with words that name neither what was changed nor what it stands in;
- silent: it means something and nobody said so;
- traceback: an error that names no cause; hang: no answer within 60 s.

The last four are faults; the exit status is 1 where there is one.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from mutations import Mutation, mutate, mutate_model, mutate_text
from quadruped import urdf

PAGES = ("go2_flat", "go1_flat_full", "go2_stand")
#: What is broken: values and text of a page and of robot.yaml, and model files.
KINDS = ("page", "page text", "robot.yaml", "robot text", "MJCF", "URDF")
#: A page for a robot from a URDF, which `embodied-rl new robot` made.
DOG = "dog_flat"
FAULTS = ("vague", "silent", "traceback", "hang")
ENDS = ("refused", "seen", "the same", *FAULTS)
_TIMEOUT = 60.0
_SMALL = "env.num_envs=16"


def dog(folder: Path) -> Path:
    """Make the robot of DOG and its page; the folder."""
    from embodied_rl.new.robot import new_robot

    (folder / "dog.urdf").write_text(urdf())
    new_robot(folder / "dog.urdf", folder / "dog")
    return folder / "dog"


def write_page(place: Path, page: str, kind: str, dogs: Path, draw: random.Random | None) -> Mutation:
    """Write a page, and where the robot is broken its robot, into a folder; with a mistake that `draw` chooses, or right."""
    from embodied_rl.config import load
    from embodied_rl.paths import shipped

    def broken(mutate: Callable, document: Any) -> Mutation:
        return mutate(document, draw) if draw else Mutation(document, "", ())

    if page == DOG and kind == "page text":
        shutil.copytree(dogs, place)  # which the page names as its own folder
    else:
        place.mkdir()
    source = dogs / f"{DOG}.yaml" if page == DOG else shipped("configs") / f"{page}.yaml"
    if kind == "page text":
        found = broken(mutate_text, source.read_text())
        (place / "page.yaml").write_text(found.document)
        return found
    document = yaml.safe_load(load(source).to_yaml())
    if kind == "page":
        found = broken(mutate, document)
        document = found.document
    else:
        shutil.copytree(dogs if page == DOG else shipped("robots") / document["robot"], place / "robot")
        document["robot"] = "robot"
        file = place / "robot" / "robot.yaml"
        if kind == "robot.yaml":
            found = broken(mutate, yaml.safe_load(file.read_text()))
            file.write_text(yaml.safe_dump(found.document, sort_keys=False, allow_unicode=True))
        elif kind == "robot text":
            found = broken(mutate_text, file.read_text())
            file.write_text(found.document)
        else:
            (file,) = (place / "robot").glob("*.urdf" if page == DOG else "*.xml")
            found = broken(mutate_model, file.read_text())
            file.write_text(found.document)
    (place / "page.yaml").write_text(yaml.safe_dump(document, sort_keys=False, allow_unicode=True))
    return found


def look(page: Path) -> dict[str, Any]:
    """Check a page as the command line does; its status, what was said, and what it is."""
    from embodied_rl.cli import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status: Any = main(["check", "--print", str(page), _SMALL])
        except SystemExit as end:
            status = f"SystemExit {end.code}"
        except BaseException:
            return {"status": "traceback", "said": traceback.format_exc()[-2000:]}
    found = {"status": status, "said": err.getvalue()}
    if status == 0:
        text = out.getvalue().replace(str(page.parent), "")
        found |= {"printed": text, "report": _report(page).replace(str(page.parent), ""), "bits": _fingerprint(page)}
    return found


def _report(page: Path) -> str:
    from embodied_rl.cli import main

    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        main(["view", str(page), "--report"])
    return out.getvalue()


def _fingerprint(page: Path) -> str:
    """Give a hash of what the page's robots do, see and are paid in half a second of fixed random actions."""
    import torch

    from embodied_rl.make_env import make

    env, generator, digest = (
        make(str(page), ["env.compile=false"], num_envs=16),
        torch.Generator().manual_seed(0),
        hashlib.sha256(),
    )
    for _ in range(25):
        result = env.step(torch.rand(16, env.num_actions, generator=generator) - 0.5)
        for tensor in (env.physics.qpos, env.physics.qvel, *result.obs.values(), env.episode.reward, env.episode.done):
            digest.update(tensor.numpy().tobytes())
    env.close()
    return digest.hexdigest()


def forked(page: Path) -> dict[str, Any]:
    """Look at a page in a process of its own."""
    answer = page.parent / "answer.json"
    child = os.fork()
    if child == 0:
        try:
            answer.write_text(json.dumps(look(page)))
        finally:
            os._exit(0)
    begun = time.monotonic()
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() - begun > _TIMEOUT:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return {"status": "hang", "said": ""}
        time.sleep(0.01)
    if not answer.exists():
        return {"status": "traceback", "said": "the process ended without a word"}
    return json.loads(answer.read_text()) | {"seconds": time.monotonic() - begun}


def verdict(found: dict[str, Any], unbroken: dict[str, Any], words: tuple[str, ...]) -> str:
    """Say what became of a mutation that these words tell of."""
    if found["status"] in ("traceback", "hang"):
        return found["status"]
    said = "\n".join(line for line in found["said"].splitlines() if line.strip())
    if found["status"] == 2 and said and "Traceback" not in said:
        whole = "in the first step" in said  # what blows up is the whole of the robot: nobody knows which number did it
        return "refused" if whole or any(word in said for word in words if word) else "vague"
    if found["status"] != 0:
        return "traceback"
    if any(found[key] != unbroken[key] for key in ("printed", "report")):
        return "seen"
    return "the same" if found["bits"] == unbroken["bits"] else "silent"


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="+", help="these mutations alone, and all that was said of them")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    import embodied_rl.inspection  # noqa: F401  what is imported once, is imported for all

    rows, totals, unbroken = [], {kind: Counter() for kind in KINDS}, {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dogs = dog(folder)
        for index in options.only or range(options.count):
            draw, kind = random.Random(f"{options.seed}/{index}"), KINDS[index % len(KINDS)]
            page = DOG if kind == "URDF" else draw.choice(PAGES if kind == "MJCF" else (*PAGES, DOG))
            if (page, kind) not in unbroken:
                place = folder / f"right{len(unbroken)}"  # a plain word, as the broken ones' is
                write_page(place, page, kind, dogs, None)
                unbroken[page, kind] = forked(place / "page.yaml")
                assert unbroken[page, kind]["status"] == 0, unbroken[page, kind]["said"]
            mutation = write_page(folder / str(index), page, kind, dogs, draw)
            found = forked(folder / str(index) / "page.yaml")
            end = verdict(found, unbroken[page, kind], mutation.words)
            totals[kind][end] += 1
            said = found["said"].replace(f"{folder}/", "")
            rows.append({"index": index, "kind": kind, "page": page, "mutation": mutation.said, "end": end, "said": said})
            if end in FAULTS or options.only:
                print(f"{index} {end}: {kind} of {page}: {mutation.said}", said[-900:], sep="\n  ", flush=True)
            if not options.only:
                shutil.rmtree(folder / str(index))
    print(f"{'':12s}" + "".join(f"{end:>11s}" for end in ENDS))
    for kind, counts in totals.items():
        print(f"{kind:12s}" + "".join(f"{counts[end]:11d}" for end in ENDS))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    return int(any(counts[end] for counts in totals.values() for end in FAULTS))


if __name__ == "__main__":
    sys.exit(main())
