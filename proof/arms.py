"""What `saescope evaluate` measured, as the experiments keep and show it."""

from collections.abc import Sequence
from typing import Any

from proof.wording import nats, share_ci, table

_KEPT = ("name", "strength", "behaviour_rate", "ci", "spread", "draws", "kl_mean", "ppl_ratio")
_ALSO = ("repetition", "match", "matched", "wrecked", "delta_norm_ratio", "scored", "languages")


def arms_of(document: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of every arm, the verdict, and how much was measured."""
    arms = [{key: arm.get(key) for key in (*_KEPT, *_ALSO)} for arm in document["conditions"]]
    names = ("verdict", "chosen", "judge_error", "edits", "n_prompts", "neutral_tokens")
    return {"arms": arms, **{key: document.get(key) for key in names}}


def find_arm(evaluation: dict[str, Any], name: str) -> dict[str, Any] | None:
    """Return the arm of this name, of the edits the chosen one; None if it was not measured."""
    for arm in evaluation["arms"]:
        is_chosen = name != "edits" or arm["strength"] == evaluation["chosen"]["strength"]
        if arm["name"] == name and is_chosen:
            found: dict[str, Any] = arm
            return found
    return None


def arm_table(evaluation: dict[str, Any], shown: str) -> str:
    """Return a table of the arms; `shown` heads the column of rates."""
    rows = [
        [
            arm["name"],
            "" if arm["strength"] is None else f"{arm['strength']:g}",
            _rate(arm),
            nats(arm["kl_mean"]),
            "–" if arm["ppl_ratio"] is None else f"{arm['ppl_ratio']:.2f}",
            _match(arm),
        ]
        for arm in evaluation["arms"]
    ]
    return table(("condition", "strength", shown, "KL", "perplexity", "damage"), rows)


def _rate(arm: dict[str, Any]) -> str:
    if arm["behaviour_rate"] is None:
        return "–"
    if arm["spread"] and arm["draws"] > 1:
        low, high = (f"{100 * bound:.0f}" for bound in arm["spread"])
        return f"{100 * arm['behaviour_rate']:.0f} % ({low}-{high} in {arm['draws']} draws)"
    return share_ci(arm["behaviour_rate"], arm["ci"])


def _match(arm: dict[str, Any]) -> str:
    """Return how a control's damage compares with the edits', if that was matched."""
    return arm["match"] or ""


def overlap(first: Sequence[float], second: Sequence[float]) -> bool:
    """Return whether two intervals overlap."""
    return first[0] <= second[1] and second[0] <= first[1]
