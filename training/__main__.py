"""Make the embedded pair and its prompt sets: `python -m training`, about an hour on two cores.

Name steps to run only those: model, saes, judge, publish, prompts (needs no model). The steps
organism, organism_saes, organism_judge and organism_publish run only if named; they make the
organism from the published pair in about as long.
"""

import argparse

from training.steps import PAIR, STEPS

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument(
        "steps", nargs="*", help=f"any of {', '.join(STEPS)}; default: {', '.join(PAIR)}"
    )
    named = parser.parse_args().steps
    if unknown := set(named) - set(STEPS):
        parser.error(f"no step {', '.join(sorted(unknown))}")
    for step in named or PAIR:
        STEPS[step]()
