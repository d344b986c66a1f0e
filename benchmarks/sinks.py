"""Rules for attention sinks, measured on a model and real texts: recall and false alarms per layer.

TEXTS is a folder with `NAME.txt` files, one text per line, at any depth (`\\n` in a line stands for
a line break). Of each file, some lines are read alone. Others are joined, so that there are sinks
mid-sequence: by the tokenizer's own BOS or EOS, by blank lines, by rows of delimiters.

    python -m benchmarks.sinks MODEL_FOLDER TEXTS
    python -m benchmarks.sinks saescope-tiny TEXTS

A position is taken for a sink if a middle layer shows it as massive: after layer 0 and in the first
four fifths of the blocks, its norm exceeds 4 times the layer's median and one coordinate holds over
half of the squared norm. A rule sees one layer only and is compared with that. First positions
are left out of all figures.
"""

import argparse
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from saescope.engine.lm import LM, load_lm
from saescope.engine.norms import measure_norms
from saescope.sources.prompts import PromptSet, texts
from saescope.store.arrays import Bools, Floats
from saescope.store.masking import Magnitudes, Masking
from saescope.store.run_positions import run_positions
from saescope.store.token_norms import MeasuredNorms

_TIMES, _SHARE, _DEPTH = 4.0, 0.5, 0.8  # what is massive, and where: the truth
_SHORTEST, _LONGEST = 40, 600  # characters of a line that is used


@dataclass(frozen=True)
class Layer:
    """Tokens after position 0: norms over their lower median, sorted ratios, peaks."""

    ratios: Floats
    peaks: Floats

    @property
    def rest(self) -> Floats:
        """What other coordinates hold, over its median."""
        rest = 1 - self.peaks
        return np.asarray(rest / np.median(rest))


Rule = Callable[[Layer], Bools]


def main() -> None:
    """Print the tables of one model."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sinks")
    parser.add_argument("model")
    parser.add_argument("texts", type=Path)
    parser.add_argument("--per-file", type=int, default=6, help="texts of each file, joined too")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    lm = load_lm(arguments.model)
    layers = range(lm.spec.n_layers)
    sets = list(_prompt_sets(lm, arguments.texts, arguments.per_file, arguments.seed))
    measured = measure_norms(lm, layers, sets)
    later = measured.token_pos > 0
    tokens = {n: _layer(measured.magnitudes(n), later) for n in layers}
    truth = _truth(tokens)
    n_sinks, n_tokens = int(truth.sum()), len(truth)
    print(f"{Path(arguments.model).name}: {n_sinks:,} sinks among {n_tokens:,} later positions\n")
    _print_rules({n: tokens[n] for n in layers if n}, truth)
    _print_runs(measured, later, truth)


def _prompt_sets(lm: LM, folder: Path, per_file: int, seed: int) -> Iterator[PromptSet]:
    """Yield a set per file: lines alone, then lines joined in ways that make sinks."""
    tokenizer = lm.tokenizer
    special = tokenizer.bos_token or tokenizer.eos_token or "\n"
    between = (special, "\n\n\n\n", "\n----------\n", "\n|||\n***\n")
    for path in sorted(folder.rglob("*.txt")):
        lines = [line.replace("\\n", "\n") for line in path.read_text("utf-8").splitlines()]
        lines = [line[:_LONGEST] for line in lines if len(line) >= _SHORTEST]
        rng = random.Random(f"{seed} {path.name}")
        rng.shuffle(lines)
        alone, pairs = lines[:per_file], zip(lines[per_file:], lines[per_file + 1 :], strict=False)
        joined = [
            f"{first}{mark}{second}" for mark, (first, second) in zip(between, pairs, strict=False)
        ]
        if alone:
            name = "-".join(path.relative_to(folder).with_suffix("").parts)
            yield texts([*alone, *joined], name)[0]


def _layer(magnitudes: Magnitudes, later: Bools) -> Layer:
    if magnitudes.peaks is None:
        raise ValueError("norms are measured with peaks")
    norms = magnitudes.norms[later].astype(np.float64)
    peaks = magnitudes.peaks[later].astype(np.float64)
    return Layer(norms / np.sort(norms)[(len(norms) - 1) // 2], peaks)


def _truth(layers: Mapping[int, Layer]) -> Bools:
    """Return which tokens a middle layer shows as massive."""
    middle = range(1, max(2, int(_DEPTH * len(layers))))
    massive = [(layers[n].ratios > _TIMES) & (layers[n].peaks > _SHARE) for n in middle]
    return np.asarray(np.any(massive, axis=0))


def _above(times: float) -> Rule:
    return lambda layer: np.asarray(layer.ratios > times)


def _gap(factor: float) -> Rule:
    """Return a rule: all norms beyond the first jump by this factor above the median."""

    def rule(layer: Layer) -> Bools:
        ascending = np.sort(layer.ratios)
        upper = ascending[len(ascending) // 2 :]
        jumps = np.flatnonzero(upper[1:] > factor * upper[:-1])
        if not len(jumps):
            return np.zeros(len(layer.ratios), bool)
        return np.asarray(layer.ratios >= upper[jumps[0] + 1])

    return rule


def _shipped(layer: Layer) -> Bools:
    """The rule of one layer that statistics and steering use."""
    pos = np.arange(len(layer.ratios)) + 1
    return Masking().sinks(pos, Magnitudes(layer.ratios, layer.peaks))


RULES: Mapping[str, Rule] = {
    "10 x": _above(10),
    "5 x": _above(5),
    "3 x": _above(3),
    "gap 1.5": _gap(1.5),
    "peak > 0.9": lambda layer: np.asarray(layer.peaks > 0.9),
    "rest < 1/4": lambda layer: np.asarray(layer.rest < 0.25),
    "2.5 x, peak": lambda layer: np.asarray((layer.ratios > 2.5) & (layer.peaks > 0.5)),
    "saescope": _shipped,
}


def _print_rules(layers: Mapping[int, Layer], truth: Bools) -> None:
    """Print recall and false alarms of each rule, neighbouring layers with equal rows as one."""
    print(f"| layers | {' | '.join(RULES)} |\n|{'---|' * (1 + len(RULES))}")
    rows: list[tuple[list[int], list[str]]] = []
    for n, layer in layers.items():
        cells = [_figures(rule(layer), truth) for rule in RULES.values()]
        if rows and rows[-1][1] == cells:
            rows[-1][0].append(n)
        else:
            rows.append(([n], cells))
    for numbers, cells in rows:
        label = f"{numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else str(numbers[0])
        print(f"| {label} | {' | '.join(cells)} |")


def _print_runs(measured: MeasuredNorms, later: Bools, truth: Bools) -> None:
    """Print the same for runs of several layers, whose sinks are those of any of them."""
    n_layers = len(measured.layers)
    print("\n| run of layers | recall % / false alarms |\n|---|---|")
    quarters = [n_layers // 4, n_layers // 2, 3 * n_layers // 4]
    for layers in (quarters[1:], quarters, measured.layers):
        kept = {n: measured.magnitudes(n) for n in layers}
        run = MeasuredNorms(
            measured.prompts, measured.lengths, measured.token_text, measured.is_text, kept
        )
        sinks = run_positions(run, Masking())[layers[0]].sinks[later]
        print(f"| {_names(layers)} | {_figures(sinks, truth)} |")


def _names(layers: Sequence[int]) -> str:
    return "all" if len(layers) > 3 else ", ".join(map(str, layers))


def _figures(found: Bools, truth: Bools) -> str:
    """Return recall in percent and the number of false alarms."""
    n_sinks = int(truth.sum())
    recall = f"{100 * int((found & truth).sum()) / n_sinks:.0f}" if n_sinks else "-"
    return f"{recall} / {int((found & ~truth).sum()):,}"


if __name__ == "__main__":
    main()
