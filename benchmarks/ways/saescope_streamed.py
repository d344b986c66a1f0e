"""saescope with one block in memory at a time."""

from functools import partial

from benchmarks.ways.measure import run
from benchmarks.ways.saescope_run import load

if __name__ == "__main__":
    run(partial(load, streamed=True))
