"""How well a policy does under what it may meet besides: pushes, payloads, slippery ground."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from embodied_rl.config import Page
from embodied_rl.errors import UserError
from embodied_rl.learn.evaluate import SEEDS, evaluation_page
from embodied_rl.mdp.score import score_of
from embodied_rl.runs import LoadedRun, evaluate_policy, keep_figures

Stresses = dict[str, list[str]]
"""Changes of the page that a policy is judged on, by the name of the stress."""


def stresses_of(page: Page) -> Stresses:
    """List the stresses of a page's family.

    Raises:
        UserError: it knows none.
    """
    stresses = getattr(score_of(page), "stresses", None)
    if stresses is None:
        raise UserError(f"{page.name}: task: {page.task}: its score has no stresses(self, page) (docs/families.md)")
    found = stresses(page)
    sound = isinstance(found, dict) and all(
        isinstance(changes, list | tuple) and all(isinstance(one, str) for one in changes) for changes in found.values()
    )
    if not sound:
        raise UserError(f"{page.name}: task: {page.task}: stresses(page) gives no lists of 'key.path=value' by name")
    return found


def stress(
    loaded: LoadedRun,
    page: Page,
    stresses: Stresses,
    figures: Mapping[str, object],
    shown: Sequence[str],
    *,
    seed: int,
    reference: bool,
    keep: bool = True,
) -> dict[str, dict[str, float]]:
    """Judge a policy under stresses, print and keep what comes out.

    What is kept lies beside the evaluation's own figures: all of them as JSON and, where the page has patches, a picture of how
    many get across which.

    Args:
        loaded: the policy.
        page: as it is evaluated.
        stresses: what it is judged under.
        figures: of its evaluation without any stress.
        shown: figures that are printed.
        seed: 1, 2 or 3.
        reference: in reference physics.
        keep: write what comes out beside the run.

    Returns:
        Figures of each stress.
    """
    found: dict[str, dict[str, float]] = {}
    for name, changes in stresses.items():
        found[name] = evaluate_policy(page, loaded.policy, seed=SEEDS[seed - 1], reference=reference, changes=changes)
        print(f"{name:32s} {'   '.join(f'{figure} {found[name][figure]:.4f}' for figure in shown if figure in found[name])}")
    if not keep:
        return found
    plain = loaded.evaluation(seed, reference)
    kept = plain.with_name(f"{plain.stem}.robustness.json")
    if not keep_figures(kept, {**figures, "stressed": found}, kept.parent):
        return found
    print(kept)
    if page.patches:
        from embodied_rl.view.ground import draw_successes

        judged = evaluation_page(page, SEEDS[seed - 1], reference=reference)
        shares = {name: value for name, value in figures.items() if isinstance(value, float)}
        draw_successes(judged, shares, found, kept.with_suffix(".png"))
        print(kept.with_suffix(".png"))
    return found
