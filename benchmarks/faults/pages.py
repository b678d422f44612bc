"""Breaks pages and robots at random, and sees whether `embodied-rl check` says so.

    python benchmarks/faults/pages.py [--count 300] [--seed 0] [--json F]

Each mutation is one change of one value of a page, of robot.yaml or of the robot's model file: another number, type or name, a
key left out, misspelt or moved, an attribute of the model dropped or made absurd.  A process of its own, forked from this one,
checks the result.  It is then one of

- refused: exit status 2, and lines that say why;
- seen: `check --print` or `view --report` says something else than of the unbroken page;
- the same: the change means nothing (a name that nothing refers to, looks, an equal number): the robots do, see and are paid the
  same to the last bit;
- silent: it means something and nobody said so;
- traceback: an error that names no cause; hang: no answer within 60 s.

The last three but one are faults; the exit status is 1 where there is one of the last three.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
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
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

PAGES = ("go2_flat", "go1_flat_full", "go2_stand")
#: What stands in place of a value.
ODD: tuple[Any, ...] = (
    0,
    -1,
    1,
    1e30,
    -1e-40,
    float("nan"),
    float("inf"),
    10**30,
    "",
    "x",
    "1.0",
    None,
    [],
    {},
    True,
    [1, 2],
    "../x",
)
#: The same in a model file.
ODD_TEXT = ("", "0", "-1", "1e30", "nan", "x", "0 0 0", "1 2", "true", "0 0 0 0")
_TIMEOUT = 60.0


def leaves(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Find the places of all values in nested mappings and lists."""
    if isinstance(value, (dict, list)):
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield (*path, key)
            yield from leaves(one, (*path, key))


def mutate(document: Any, draw: random.Random) -> tuple[Any, str]:
    """Change one value of a document; the new one, and what was done."""
    changed, path = copy.deepcopy(document), draw.choice(sorted(leaves(document), key=str))
    parent = changed
    for key in path[:-1]:
        parent = parent[key]
    key, old = path[-1], parent[path[-1]]
    kind = draw.choice(("odd", "odd", "scale", "drop", "misspell", "swap"))
    said = ".".join(map(str, path))
    if kind == "scale" and isinstance(old, (int, float)) and not isinstance(old, bool):
        parent[key] = type(old)(old * draw.choice((-1, 0.001, 0.5, 2, 1000)))
    elif kind == "drop":
        del parent[key]
        return changed, f"{said} left out"
    elif kind == "misspell" and isinstance(key, str):
        word = key[:-1] if len(key) > 3 else key + "x"
        items = [(word if name == key else name, one) for name, one in parent.items()]
        parent.clear()
        parent.update(items)
        return changed, f"{said} misspelt {word}"
    elif kind == "swap" and isinstance(parent, list) and len(parent) > 1:
        parent.reverse()
        return changed, f"{said[: said.rindex('.')]} reversed"
    else:
        parent[key] = draw.choice(ODD)
    return changed, f"{said}: {old!r} -> {parent[key]!r}"[:160]


def mutate_model(text: str, draw: random.Random) -> tuple[str, str]:
    """Change one attribute or element of a model file; the new text, and what was done."""
    tree = ElementTree.fromstring(text)
    parents = {child: parent for parent in tree.iter() for child in parent}
    element = draw.choice([one for one in tree.iter() if one is not tree])
    kind = draw.choice(("odd", "odd", "drop", "remove", "twice"))
    name = f"<{element.tag} {element.get('name', '')}>"
    if kind == "remove" or not element.attrib:
        parents[element].remove(element)
        return ElementTree.tostring(tree, encoding="unicode"), f"{name} removed"
    if kind == "twice":
        parents[element].append(copy.deepcopy(element))
        return ElementTree.tostring(tree, encoding="unicode"), f"{name} twice"
    key = draw.choice(sorted(element.attrib))
    old = element.attrib.pop(key)
    if kind == "drop":
        return ElementTree.tostring(tree, encoding="unicode"), f"{name} {key} left out"
    element.set(key, draw.choice(ODD_TEXT))
    return ElementTree.tostring(tree, encoding="unicode"), f"{name} {key}: {old!r} -> {element.get(key)!r}"


def plain(page: str) -> dict[str, Any]:
    """Write a shipped page out, every default filled in."""
    from embodied_rl.config import load

    return yaml.safe_load(load(page).to_yaml())


def mutations(count: int, seed: int, folder: Path) -> Iterator[tuple[str, str, Path]]:
    """Make broken pages: what was broken, how, and the page's path."""
    from embodied_rl.paths import shipped

    documents = {name: plain(name) for name in PAGES}
    for index in range(count):
        draw = random.Random(f"{seed}/{index}")
        place = folder / str(index)
        place.mkdir()
        name = draw.choice(PAGES)
        document, kind = copy.deepcopy(documents[name]), ("page", "robot.yaml", "model")[index % 3]
        document["env"]["num_envs"] = 16
        if kind == "page":
            document, said = mutate(document, draw)
        else:
            source = shipped("robots") / document["robot"]
            shutil.copytree(source, place / "robot")
            document["robot"] = "robot"
            file = place / "robot" / "robot.yaml"
            if kind == "robot.yaml":
                robot, said = mutate(yaml.safe_load(file.read_text()), draw)
                file.write_text(yaml.safe_dump(robot, sort_keys=False))
            else:
                (file,) = (place / "robot").glob("*.xml")
                text, said = mutate_model(file.read_text(), draw)
                file.write_text(text)
        (place / "page.yaml").write_text(yaml.safe_dump(document, sort_keys=False, allow_unicode=True))
        yield kind, f"{name}: {said}", place / "page.yaml"


def look(page: Path) -> dict[str, Any]:
    """Check a page as the command line does; its status, what was said, and what it is."""
    from embodied_rl.cli import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status: Any = main(["check", "--print", str(page)])
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


def verdict(found: dict[str, Any], unbroken: dict[str, Any]) -> str:
    """Say what became of a mutation."""
    if found["status"] in ("traceback", "hang"):
        return found["status"]
    if found["status"] == 2 and found["said"].strip() and "Traceback" not in found["said"]:
        return "refused"
    if found["status"] != 0:
        return "traceback"
    if any(found[key] != unbroken[key] for key in ("printed", "report")):
        return "seen"
    return "the same" if found["bits"] == unbroken["bits"] else "silent"


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    import embodied_rl.inspection  # noqa: F401  what is imported once, is imported for all

    rows, totals = [], {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        unbroken = {}
        for page in PAGES:
            for kind in ("page", "robot"):  # a robot of one's own says its folder otherwise than a shipped one
                place = folder / f"{page}_{kind}"
                place.mkdir()
                document = plain(page)
                document["env"]["num_envs"] = 16
                if kind == "robot":
                    from embodied_rl.paths import shipped

                    shutil.copytree(shipped("robots") / document["robot"], place / "robot")
                    document["robot"] = "robot"
                (place / "page.yaml").write_text(yaml.safe_dump(document, sort_keys=False, allow_unicode=True))
                unbroken[page, kind] = forked(place / "page.yaml")
                assert unbroken[page, kind]["status"] == 0, unbroken[page, kind]["said"]
        for kind, said, path in mutations(options.count, options.seed, folder):
            found = forked(path)
            end = verdict(found, unbroken[said.partition(":")[0], "page" if kind == "page" else "robot"])
            totals.setdefault(kind, Counter())[end] += 1
            rows.append({"kind": kind, "mutation": said, "end": end, "said": found["said"], "seconds": found.get("seconds")})
            if end in ("silent", "traceback", "hang"):
                print(f"{end}: {kind}: {said}", found["said"][-600:] if end != "silent" else "", sep="\n  ", flush=True)
    ends = ("refused", "seen", "the same", "silent", "traceback", "hang")
    print(f"{'':12s}" + "".join(f"{end:>11s}" for end in ends))
    for kind, counts in totals.items():
        print(f"{kind:12s}" + "".join(f"{counts[end]:11d}" for end in ends))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    return int(any(counts[end] for counts in totals.values() for end in ends[3:]))


if __name__ == "__main__":
    sys.exit(main())
