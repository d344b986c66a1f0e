"""Run the proof on real models: `scripts/real`, a few hours on two cores.

Finished steps are kept, so the same command continues an interrupted run.
"""

import argparse
import os
import sys
from collections.abc import Sequence

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything comes from packages

from proof.folder import data_folder
from proof.packages import FetchError
from proof.page import write_page
from proof.registry import STEPS
from proof.steps import Progress, Step


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="scripts/real", description=__doc__)
    names = ", ".join(STEPS)
    parser.add_argument("--only", metavar="NAME", help=f"this step and what it needs: {names}")
    parser.add_argument(
        "--alone", action="store_true", help="with --only: take what it needs as it is"
    )
    parser.add_argument("--again", action="store_true", help="with --only: even if it is done")
    parser.add_argument("--list", action="store_true", help="show the steps and run none")
    options = parser.parse_args(arguments)
    if options.only and options.only not in STEPS:
        parser.error(f"there is no step {options.only!r}: use one of {names}")
    if (options.alone or options.again) and not options.only:
        parser.error("--alone and --again need --only NAME")
    folder = data_folder()
    progress = Progress(STEPS, folder)
    if options.list:
        show(progress)
        return 0
    only = [STEPS[options.only]] if options.only else list(STEPS.values())
    steps = only if options.alone else progress.needed([step.name for step in only])
    try:
        run(progress, steps, again=options.only if options.again else None)
    except KeyboardInterrupt:
        print("interrupted: run the same command to continue", file=sys.stderr)
        return 130
    except FetchError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def show(progress: Progress) -> None:
    """Print every step, its state and its minutes."""
    remaining = 0.0
    for step in progress.steps.values():
        state = progress.state(step)
        remaining += 0 if state == "done" else step.minutes
        print(f"{step.name:16} {state:9} {step.minutes:4g} min  {step.about}")
    print(f"remaining: about {remaining:g} min on two cores, in {progress.folder.root}")


def run(progress: Progress, steps: Sequence[Step], again: str | None = None) -> None:
    """Run those steps that are not done, then write the page from all results that are there."""
    for step in steps:
        if step.name != again and progress.state(step) == "done":
            say(f"{step.name}: done before")
            continue
        say(f"{step.name}: {step.about}, about {step.minutes:g} min")
        seconds = progress.run(step)
        say(f"{step.name}: finished in {seconds:.0f} s")
    if progress.folder.results.exists():
        write_page(progress.folder)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
