"""What a page pays for: what some dummies earn on it, term by term, so that a reward on which standing pays is seen early.

`stands`, and the puppets of the page's family, are led by the hand (`embodied_rl.puppets`): the last of these does exactly what
the family asks for.  `random` acts as an untrained policy does, and `falls` lies on its back from the first step on.  Nothing
else is random, nothing pushes, the ground is a plane, and what curricula move is as they end.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from embodied_rl.config import Page, override
from embodied_rl.env import Env
from embodied_rl.errors import UserError
from embodied_rl.learn.cpu.team import one_thread
from embodied_rl.learn.learner import numbers_of
from embodied_rl.legs import Legs
from embodied_rl.make_env import make
from embodied_rl.mdp.curricula import Curricula, page_as_moved
from embodied_rl.mdp.moment import Draw, Moment
from embodied_rl.mdp.puppet import Audit, Motion, Script, audit_of
from embodied_rl.mdp.score import Environment
from embodied_rl.mdp.totals import total_names
from embodied_rl.puppets import Puppets

#: Robots of each dummy; how long they go before it counts, for strides begin somewhere, and how long it does [s].
ROBOTS, UNCOUNTED_S, COUNTED_S = 32, 1.0, 3.0
#: Whoever does not do what is asked for earns no more than this share of what is paid for it.
MOST = 0.6
#: Terms that pay less than this share of the whole are not spoken of.
_LITTLE = 0.01
#: A puppet whose foot is this far from its place does not do what it shall [m].
_MISS = 0.01
_RANDOM = ("random", "acting at random")


class Earned(NamedTuple):
    """What a dummy earns."""

    terms: dict[str, float]
    """Each reward term's mean per second, weighted."""
    total: float
    """Their sum, not below `env.reward_floor`, as a trainer sees it."""
    before_floor: float
    """Their sum."""
    lasts: float
    """How long an episode lasts, as far as terminations have it [s]."""

    @property
    def episode(self) -> float:
        """Return of an episode."""
        return self.total * self.lasts


Table = dict[str, Earned]
"""By dummy, in the order of the columns."""


class Audited(NamedTuple):
    """What was found of a page."""

    tables: dict[str, Table]
    """By what dummies were asked for, the main one first."""
    floor: float | None
    """The page's `env.reward_floor`."""
    notes: list[str]
    """What could not be tried, and what dummies did not do; a line each."""
    warnings: list[str]
    """What the page pays for; a line each."""

    def lines(self) -> Iterator[str]:
        """Write the table, with notes and warnings below."""
        main, *others = self.tables
        table = self.tables[main]
        rows = {term: [one.terms[term] for one in table.values()] for term in next(iter(table.values())).terms}
        rows["total"] = [one.total for one in table.values()]
        if self.floor is not None:
            rows[f"before the floor of {self.floor:g}"] = [one.before_floor for one in table.values()]
        rows |= {f"total, {case}": [one.total for one in self.tables[case].values()] for case in others}
        rows["an episode lasts [s]"] = [one.lasts for one in table.values()]
        rows["and returns"] = [one.episode for one in table.values()]
        title = f"a second, {main}"
        first, width = max(map(len, (*rows, title))), max(9, *(len(name) + 2 for name in table))
        yield f"{title:{first}}" + "".join(f"{name:>{width}}" for name in table)
        for name, values in rows.items():
            if name == "total":
                yield ""
            yield f"{name:{first}}" + "".join(f"{round(value, 2) + 0.0:>{width}.2f}" for value in values)
        yield from ("", *self.notes, *(f"warning: {line}" for line in self.warnings))

    def figures(self) -> dict[str, Any]:
        """Give all figures by name, for JSON."""
        found = {
            case: {
                name: {f"reward/{term}": value for term, value in one.terms.items()}
                | {"reward/total": one.total, "reward/before_floor": one.before_floor}
                | {"episode_s": one.lasts, "return": one.episode}
                for name, one in table.items()
            }
            for case, table in self.tables.items()
        }
        return {**found, "notes": self.notes, "warnings": self.warnings}


def audit(page: Page) -> Audited:
    """Let dummies earn what a page pays.

    Raises:
        UserError: its environment cannot be made, or its family is broken; one line.
    """
    if page.env.source:
        raise UserError(f"{page.name}: env.source: {page.env.source}: what it pays is said there; audit takes pages with a robot")
    page = _as_it_ends(page)
    family, notes, tables, words = audit_of(page), [], {}, {}
    if family is None:
        notes.append(f"{page.name}: " + ("its task family has no audit.py" if page.task else "task: it names no family"))
    goal, cases = None, {"all commands": []} if family is None else family.asked(page)
    ended: list[str] = []
    for case, changes in cases.items():
        # rows of one number are asked for the same, whatever dummy they are
        ids = torch.arange(ROBOTS).repeat(3 + (0 if family is None else len(family.PUPPETS)))
        env = make(_as_tried(page, changes), env_ids=ids)
        try:
            dummies = _Dummies(env, family)
            tables[case], words, goal = dummies.earn(page.env.episode_s), dummies.words, dummies.goal
            notes += [line for line in dummies.notes if line not in notes]
            ended += [line for line in dummies.ended if line not in ended]
        finally:
            env.close()
    return Audited(tables, page.env.reward_floor, notes, [*ended, *_warnings(tables, words, goal)])


def stands(env: Environment, moment: Moment, feet: Tensor) -> Motion:
    """Keep the default pose, at rest."""
    places = feet.expand(moment.num_envs, *feet.shape)
    return Motion(torch.zeros(moment.num_envs, 3), places, torch.zeros_like(places))


def _as_it_ends(page: Page) -> Page:
    """Write into a page what its curricula move, as they end."""
    if not page.curriculum:
        return page
    curricula = Curricula(page, numbers_of(page))
    curricula.advance({}, page.train.iterations)
    moved = curricula.state_dict()
    for name, entry in page.curriculum.items():  # what robots have to earn comes with no iteration
        if (path := entry.params.get("parameter")) in curricula.params and "end" in entry.params:
            moved[name] = {path: torch.tensor(entry.params["end"]).view(curricula.params[path].shape)}
    return page_as_moved(page, moved)


def _as_tried(page: Page, changes: list[str]) -> Page:
    """Change a page to how dummies are tried on it."""
    alone = [f"env.episode_s={2.0 * (UNCOUNTED_S + COUNTED_S)}", "env.random_episode_phase=false", "env.compile=false"]
    alone += ["physics.engine=native", "physics.device=auto", "pool.workers=null", "events=null"]
    alone += ["env.final_obs_groups=[]"]
    return override(page, [*alone, *(["patches=null"] if page.patches else []), *changes])


class _Dummies:
    """The dummies of an environment, block by block: those that are led, those on their backs, those that act at random.

    Args:
        env: of as many robots as all of them need, or more.
        family: what the page's family brings.
    """

    goal: str | None = None
    """Who does what the family asks for, where there is one."""

    def __init__(self, env: Env, family: Audit | None) -> None:
        self._env, self._family = env, family
        self.notes: list[str] = []
        self.ended: list[str] = []
        """Of those that are led, whose episode the page ends; a line each."""
        self.words = {"stands": "standing"}
        """What people call those that are led."""
        legs: Legs | None = None
        scripts: dict[str, Script] = {"stands": stands}
        try:
            legs = Legs(env.scene, env.robot)
        except UserError as error:
            self.notes.append(f"{error}: no feet are led")
        if family is not None and legs is not None:
            for name, puppet in family.PUPPETS.items():
                try:
                    puppet.script(env, env.moment(Draw()), legs.feet)
                except UserError as error:
                    self.notes.append(f"{name}: left out: {error}")
                    continue
                scripts[name], self.words[name] = puppet.script, puppet.word
                self.goal = name if name == next(reversed(family.PUPPETS)) else None
        fallen = ["falls"] if env.robot.floating else []
        self._led, self._names = list(scripts), [*scripts, *fallen, "random"]
        self._puppets = Puppets(env, legs, list(scripts.values()), ROBOTS * len(fallen), ROBOTS)

    @torch.inference_mode()
    @one_thread()
    def earn(self, episode_s: float) -> Table:
        """Go on for a while; what each earns, whose episodes last for `episode_s` [s] where nothing ends them."""
        env, blocks = self._env, len(self._names)
        wait, steps = (round(seconds / env.step_dt) for seconds in (UNCOUNTED_S, COUNTED_S))
        generator = torch.Generator().manual_seed(env.page.env.seed)
        sums, counted, ends = torch.zeros(blocks, len(env.terms.rewards) + 2), torch.zeros(blocks), torch.zeros(blocks)
        going = set(self._led)
        for step in range(1, wait + steps + 1):
            asked = self._asked()
            drawn = torch.randn(env.num_envs, env.num_actions, generator=generator)
            env.step(self._puppets.act(env.page.ppo.init_std * drawn))
            over = self._blocks(env.buffers["terminated"].float())
            for block, name in enumerate(self._led):
                if over[block] and name in going:
                    going.remove(name)
                    self.ended.append(f"{name}: ends by {self._why(block)} after {step * env.step_dt:.2f} s")
            if step == wait:
                self._puppets.misses.zero_()  # the first strides begin somewhere
            if step > wait:
                terms = env.buffers["reward_terms"]
                terms = torch.cat((terms, terms[:, :-1].sum(-1, keepdim=True)), dim=-1)
                sums += self._blocks(terms * asked[:, None])
                counted += self._blocks(asked)
                ends += over
        self.notes += self._doubts(counted, ends)
        means = (sums / (counted.clamp(min=1.0) * env.step_dt)[:, None]).tolist()
        lasts = (ROBOTS * steps * env.step_dt / ends).clamp(max=episode_s).tolist()
        rewards = [term.name for term in env.terms.rewards]
        table = {
            name: Earned(dict(zip(rewards, row, strict=False)), row[-2], row[-1], length)
            for name, row, length in zip(self._names, means, lasts, strict=True)
        }
        order = ("random", "falls", self.goal)
        return {name: table[name] for name in (*(n for n in table if n not in order), *order) if name in table}

    def _asked(self) -> Tensor:
        """Mark the robots whose next step counts with 1, (N,)."""
        env = self._env
        return torch.ones(env.num_envs) if self._family is None else self._family.counts(env, env.moment(Draw())).float()

    def _blocks(self, values: Tensor) -> Tensor:
        """Sum over the robots of each dummy: (N, ...) to (dummies, ...)."""
        return values[: ROBOTS * len(self._names)].unflatten(0, (-1, ROBOTS)).sum(1)

    def _why(self, block: int) -> str:
        """Name the terminations that ended episodes of a dummy with this step."""
        env = self._env
        names = total_names((term.name for term in env.terms.terminations), (), ())
        columns = self._blocks(env._totals.columns)[block]
        found = [name for name, count in zip(names, columns, strict=False) if name.startswith("termination/") and count]
        return " and ".join(name.removeprefix("termination/") for name in found) or "a state that is not finite"

    def _doubts(self, counted: Tensor, ends: Tensor) -> Iterator[str]:
        """Say what dummies did not do."""
        for name, miss in zip(self._led, self._puppets.misses.tolist(), strict=True):
            if miss > _MISS:
                yield f"{name}: a foot misses its place by {100.0 * miss:.1f} cm: its leg is too short, or a joint at its limit"
        if not counted.all():
            yield "nobody was asked for what standing is not"
        if "falls" in self._names and not ends[self._names.index("falls")]:
            yield "falls: nothing ends the episode of a robot on its back"


def _warnings(tables: dict[str, Table], words: dict[str, str], goal: str | None) -> Iterator[str]:
    """Say what the page pays for that it hardly means."""
    main = next(iter(tables.values()))
    if "falls" in main and main["falls"].episode > max(main["stands"].episode, main["random"].episode):
        returns = ", ".join(f"{name} {main[name].episode:.2f}" for name in ("falls", "stands", "random"))
        yield f"falling at once is better than standing and acting at random ({returns} an episode)"
    if goal is None:
        return
    for case, table in tables.items():
        if table[goal].total <= max(0.0, table["random"].total):
            others = ", ".join(f"{word} {table[name].total:.2f}" for name, word in (*words.items(), _RANDOM) if name != goal)
            yield f"{words[goal]} earns {table[goal].total:.2f} a second under {case} ({others}): the page punishes it"
    for name, word in words.items():
        totals = {case: (table[name].total, table[goal].total) for case, table in tables.items()}
        if name != goal and (said := _over(totals, f"of what {words[goal]} would")):
            yield f"{word} earns {said}"
    for term in main[goal].terms:
        paid = {case: (table["stands"].terms[term], table[goal].terms[term]) for case, table in tables.items()}
        paid = {case: both for case, both in paid.items() if both[1] > _LITTLE * abs(tables[case][goal].total)}
        if said := _over(paid, f"of what {words[goal]} gets"):
            yield f"{term} pays standing {said}"


def _over(shares: dict[str, tuple[float, float]], of: str) -> str:
    """Write which shares, a part and a whole by case, are over the limit, the largest first; nothing where none is."""
    found = {case: part / whole for case, (part, whole) in shares.items() if whole > 0.0 and part > MOST * whole}
    said = [f"{100.0 * share:.0f} % {{}}under {case}" for case, share in sorted(found.items(), key=lambda one: -one[1])]
    return ", ".join(said).format(f"{of} ", *[""] * len(said))
