"""The model cut after the layer by transformers, computing in float32."""

from functools import partial

from benchmarks.ways.measure import run
from benchmarks.ways.transformers_cut import load

if __name__ == "__main__":
    run(partial(load, dtype="float32"))
