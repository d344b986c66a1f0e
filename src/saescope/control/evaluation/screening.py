"""Which candidates of `select` deserve replies: one cheap pass per edit, before any are written."""

from collections.abc import Mapping, Sequence
from functools import partial
from statistics import fmean

import torch

from saescope.control.divergence import kl_divergence
from saescope.control.edits import Edit
from saescope.control.evaluation.neutral_passes import Block, NeutralPasses
from saescope.control.evaluation.runner import ArmRunner
from saescope.control.steer import steered
from saescope.engine.lm import LM
from saescope.engine.tokens import prompt_ids
from saescope.sources.catalog import Feature

_LEAST_KEPT = 4


def n_kept(n_candidates: int) -> int:
    """How many of so many candidates are tried at every strength: half, and at least 4."""
    return min(n_candidates, max(_LEAST_KEPT, -(-n_candidates // 2)))


def screened(
    runner: ArmRunner, tries: Mapping[Feature, Sequence[Edit]]
) -> tuple[dict[Feature, list[Edit]], set[Feature]]:
    """Return the edits that deserve replies, by feature, and the features that keep all of theirs.

    Those are the features whose edits change the first token of replies most. Of the others, the
    edit that changes it most remains, so every candidate has replies.
    """
    if n_kept(len(tries)) == len(tries):
        return {feature: list(edits) for feature, edits in tries.items()}, set(tries)
    thinking = runner.settings.thinking
    rows = [prompt_ids(runner.lm, prompt, thinking=thinking) for prompt in runner.prompts]
    edits = [edit for edits in tries.values() for edit in edits]
    blocks = [partial(steered, runner.lm, runner.saes, [edit]) for edit in edits]
    effects = iter(start_effects(runner.lm, rows, blocks))
    effect_of = {
        feature: [next(effects) for _ in feature_edits] for feature, feature_edits in tries.items()
    }
    by_effect = sorted(tries, key=lambda feature: max(effect_of[feature]), reverse=True)
    kept = set(by_effect[: n_kept(len(tries))])
    remaining = {}
    for feature, feature_edits in tries.items():
        strongest = max(range(len(feature_edits)), key=effect_of[feature].__getitem__)
        all_edits = list(feature_edits)
        remaining[feature] = all_edits if feature in kept else [all_edits[strongest]]
    return remaining, kept


@torch.inference_mode()
def start_effects(lm: LM, rows: Sequence[Sequence[int]], blocks: Sequence[Block]) -> list[float]:
    """Mean KL of the token after each row, without edits against with those of each block.

    >>> import saescope as ss
    >>> lm, sae = ss.load_lm("saescope-tiny", [2]), ss.load_sae("saescope-tiny-sae", 2)
    >>> blocks = [partial(ss.steered, lm, [sae], [ss.Edit("2/5", "add", s)]) for s in (0.0, 9.0)]
    >>> none, some = start_effects(lm, [lm.tokenizer("The red dog")["input_ids"]], blocks)
    >>> none, some > 0
    (0.0, True)
    """
    passes = NeutralPasses(lm, rows)
    kls: list[list[float]] = [[] for _ in blocks]
    for batch in range(len(passes.batches)):
        is_last = passes.following(batch) < 0
        unedited, *edited = passes.read(batch, blocks)
        before = torch.log_softmax(passes.logits(unedited[is_last]).float(), dim=-1)
        for read, kl in zip(edited, kls, strict=True):
            if read is unedited:
                kl += [0.0] * len(before)
            else:
                after = torch.log_softmax(passes.logits(read[is_last]).float(), dim=-1)
                kl += kl_divergence(before, after).tolist()
    return [fmean(kl) for kl in kls]
