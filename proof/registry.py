"""All steps in order: what is fetched and made first, then the experiments."""

from proof.experiments.registry import EXPERIMENTS
from proof.steps import Step

PREPARATION: tuple[Step, ...] = ()
STEPS = {step.name: step for step in (*PREPARATION, *(e.step for e in EXPERIMENTS))}
