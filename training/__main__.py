"""`python -m training`: make the embedded pair and its prompt sets from nothing, about an hour on two cores.

Steps can be named to run some alone: model, saes, judge, publish, prompts (needs no model); and, only when named,
organism, organism_saes, organism_judge, organism_publish, which make the organism from the published pair in about as
long.
"""

import argparse

from training.steps import PAIR, STEPS

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument(
        "steps", nargs="*", help=f"of {', '.join(STEPS)}; the first four when left out"
    )
    named = parser.parse_args().steps
    if unknown := set(named) - set(STEPS):
        parser.error(f"no step {', '.join(sorted(unknown))}")
    for step in named or PAIR:
        STEPS[step]()
