"""`python -m training`: make the embedded pair and its prompt sets from nothing, about an hour on two cores.

Steps can be named to run some alone: model, saes, judge, publish, prompts (the last needs no model).
"""

import argparse

from training.steps import STEPS

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("steps", nargs="*", help=f"of {', '.join(STEPS)}; all when left out")
    named = parser.parse_args().steps
    if unknown := set(named) - set(STEPS):
        parser.error(f"no step {', '.join(sorted(unknown))}")
    for step in named or STEPS:
        STEPS[step]()
