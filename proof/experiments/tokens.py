"""The article's token tables with Qwen3's own tokenizer, and its claims marked right or wrong."""

import json
import statistics
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from proof.folder import DataFolder
from proof.wording import join, paragraph, table
from saescope.engine.tokens import TokenText

# The article's texts, and how it says that they are divided.
SPLITS = (
    ("The capital of France is", ("The", " capital", " of", " France", " is")),
    ("import numpy as np", ("import", " numpy", " as", " np")),
    ("今日はいい天気だ", ("今日は", "いい", "天", "気", "だ")),
    ("Kaltxì", ("K", "alt", "x", "ì")),
    (" hymmnos", (" hym", "mn", "os")),
    (" hodiaŭ", (" h", "odia", "ŭ")),
)
FIRST_WORDS = ("The", "Got", "When", "朝", "明日", "猫", "Was")
SIGNED = "मैं"
REFERENCE = "zh"
# Tokens per text of each language over those of Chinese, from the article's tables.
RATIOS = {"en": 6.4 / 5.1, "ja": 8.2 / 5.1, "hi": 26.9 / 5.1, "eu": 13.7 / 5.1, "eo": 12.9 / 5.1}
NAMES = {
    "zh": "Chinese",
    "en": "English",
    "ja": "Japanese",
    "hi": "Hindi",
    "eu": "Basque",
    "eo": "Esperanto",
}
KINDS = {"declaration": tuple(NAMES), "help": ("zh", "en", "ja", "hi", "eu")}
# Its first token table, 15 prompts each; its code counts features at the same numbers of positions.
COUNTED, N_PROMPTS = {"zh": 66, "en": 95, "ja": 113, "code": 148}, 15
FIGURES = {
    "per_text": "tokens per text",
    "characters_per_token": "characters per token",
    "bytes_per_token": "bytes per token",
    "fragments": "share of tokens",
}
DRAWS = 2000


@dataclass(frozen=True)
class Claim:
    """A claim of the article in other words, and what was found."""

    claim: str
    found: str
    verdict: str

    @classmethod
    def judged(cls, claim: str, found: str, holds: bool) -> "Claim":
        """A claim that is right or wrong."""
        return cls(claim, found, "right" if holds else "wrong")


def run(folder: DataFolder) -> None:
    """Tokenize the article's texts, and parallel texts of six languages."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(
        folder.qwen3_tokenizer, trust_remote_code=False
    )
    texts = parallel_texts(folder)
    splits = [
        {"text": text, "stated": list(stated), "found": pieces(tokenizer, text)}
        for text, stated in SPLITS
    ]
    kinds = {kind: measure(tokenizer, by_language) for kind, by_language in texts.items()}
    hindi = [text for by_language in texts.values() for text in by_language.get("hi", ())]
    folder.write_result(
        "tokens",
        {
            "splits": splits,
            "first_words": {word: len(ids_of(tokenizer, word)) for word in FIRST_WORDS},
            "signed": {
                "text": SIGNED,
                "pieces": pieces(tokenizer, SIGNED),
                **signs(tokenizer, hindi),
            },
            "kinds": kinds,
        },
    )


def ids_of(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Token ids of a text, without any that mark its beginning or end."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def pieces(tokenizer: PreTrainedTokenizerFast, text: str) -> list[str]:
    r"""Text of each token; bytes that are part of a character are shown as `\xe5`."""
    show = TokenText(tokenizer)
    return [show(token) for token in ids_of(tokenizer, text)]


def parallel_texts(folder: DataFolder) -> dict[str, dict[str, list[str]]]:
    """Texts of each kind that all of its languages have, in the same order in each."""
    kinds = {}
    for kind, languages in KINDS.items():
        rows = {
            language: _texts(folder.texts / kind / f"{language}.jsonl") for language in languages
        }
        shared = sorted(set.intersection(*(set(texts) for texts in rows.values())))
        kinds[kind] = {language: [texts[key] for key in shared] for language, texts in rows.items()}
    return kinds


def _texts(path: Path) -> dict[str, str]:
    """Texts by the key that their translations share."""
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {row["key"]: row["text"] for row in rows}


def measure(
    tokenizer: PreTrainedTokenizerFast, texts: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """Tokens of each language, beside those of the same texts in Chinese."""
    counts = {
        language: np.array([len(ids_of(tokenizer, text)) for text in of_language])
        for language, of_language in texts.items()
    }
    rows = {}
    for language, of_language in texts.items():
        tokens = int(counts[language].sum())
        low, high = interval(counts[language], counts[REFERENCE])
        rows[language] = {
            "tokens": tokens,
            "per_text": tokens / len(of_language),
            "characters_per_token": sum(map(len, of_language)) / tokens,
            "bytes_per_token": sum(len(text.encode()) for text in of_language) / tokens,
            "fragments": fragments(tokenizer, of_language),
            "ratio": tokens / int(counts[REFERENCE].sum()),
            "ratio_95": [low, high],
        }
    return {"texts": len(texts[REFERENCE]), "languages": rows}


def interval(own: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Bootstrap interval, over texts, of the ratio of two languages' tokens."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(own), size=(DRAWS, len(own)))
    low, high = np.quantile(own[drawn].sum(1) / reference[drawn].sum(1), (0.025, 0.975))
    return round(float(low), 4), round(float(high), 4)


def fragments(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> float:
    """Share of tokens that hold a part of a character."""
    ids = [token for text in texts for token in ids_of(tokenizer, text)]
    broken = {token for token in set(ids) if "\ufffd" in tokenizer.decode([token])}
    return sum(token in broken for token in ids) / len(ids)


def signs(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> dict[str, Any]:
    """How many combining signs of Hindi texts are divided between tokens."""
    total = divided = 0
    for text in texts:
        tokens = tokenizer.convert_ids_to_tokens(ids_of(tokenizer, text))
        ends = set(accumulate(map(len, tokens)))  # byte-level BPE writes a character per byte
        start = 0
        for character in unicodedata.normalize("NFC", text):  # as the tokenizer reads it
            end = start + len(character.encode())
            if "\u0900" <= character <= "\u097f" and unicodedata.category(character)[0] == "M":
                total += 1
                divided += any(at in ends for at in range(start + 1, end))
            start = end
        if start != max(ends, default=0):
            raise ValueError(f"the tokens of {text[:40]!r} are not its bytes")
    return {"signs": total, "divided": divided}


def section(results: dict[str, Any]) -> str:
    """Return the part of the page about tokens."""
    return join(
        "## The article's token tables",
        paragraph(
            "Measured with Qwen3's own tokenizer, the one the article used. The article's prompts "
            "are not public, so ratios between languages are measured on parallel texts of other "
            "kinds: they can confirm an order, not a figure."
        ),
        *(_table(kind, figures) for kind, figures in results["kinds"].items()),
        _claims_table(claims(results)),
    )


def _table(kind: str, figures: dict[str, Any]) -> str:
    rows = []
    for language, row in figures["languages"].items():
        low, high = row["ratio_95"]
        rows.append(
            [
                NAMES[language],
                f"{row['per_text']:.1f}",
                "1" if language == REFERENCE else f"{row['ratio']:.2f} ({low:.2f}-{high:.2f})",
                f"{RATIOS[language]:.2f}" if language in RATIOS else "",
                f"{row['characters_per_token']:.2f}",
                f"{row['bytes_per_token']:.2f}",
                f"{100 * row['fragments']:.1f} %",
            ]
        )
    header = (
        f"{kind}, {figures['texts']:,} texts",
        "tokens per text",
        "over Chinese, 95 % CI",
        "article",
        "characters per token",
        "bytes per token",
        "tokens that are parts of characters",
    )
    return table(header, rows)


def _claims_table(found: Sequence[Claim]) -> str:
    n_right = sum(claim.verdict == "right" for claim in found)
    n_wrong = sum(claim.verdict == "wrong" for claim in found)
    n_rest = len(found) - n_right - n_wrong
    rest = f", {n_rest} right in part" if n_rest else ""
    return join(
        paragraph(
            f"Of {len(found)} claims of the article about tokens, in other words here, {n_right} "
            f"are right, {n_wrong} wrong{rest}:"
        ),
        table(("claim", "found", ""), [(one.claim, one.found, one.verdict) for one in found]),
    )


def claims(results: dict[str, Any]) -> list[Claim]:
    """Every claim about tokens, judged by the results."""
    return [
        *_split_claims(results),
        _first_word_claim(results["first_words"]),
        *_sign_claims(results["signed"]),
        *_language_claims(list(results["kinds"].values())),
        _count_claim(),
    ]


def _split_claims(results: dict[str, Any]) -> list[Claim]:
    found = []
    for split in results["splits"]:
        stated = f"`{split['text']}` is `{'`, `'.join(split['stated'])}`"
        shown = f"{len(split['found'])} tokens: `{'`, `'.join(split['found'])}`"
        found.append(Claim.judged(stated, shown, split["found"] == split["stated"]))
    last = results["splits"][-1]["found"][-1]
    whole = "`ŭ` is one token" if last == "ŭ" else f"the last token is `{last}`"
    found.append(Claim.judged("In `hodiaŭ`, `ŭ` falls into bytes", whole, last != "ŭ"))
    return found


def _first_word_claim(lengths: dict[str, int]) -> Claim:
    longer = [f"`{word}` {length}" for word, length in lengths.items() if length > 1]
    words = ", ".join(f"`{word}`" for word in lengths)
    shown = f"more than one token: {', '.join(longer)}" if longer else "each is one token"
    return Claim.judged(f"{words} each begin a prompt as a single token", shown, not longer)


def _sign_claims(signed: dict[str, Any]) -> list[Claim]:
    broken = sum("\\x" in piece for piece in signed["pieces"])
    one = Claim.judged(
        f"In `{signed['text']}`, a vowel sign is divided into bytes",
        f"{broken} of {len(signed['pieces'])} tokens hold a part of a character",
        broken > 0,
    )
    if not signed["signs"]:
        return [one]
    share = signed["divided"] / signed["signs"]
    verdict = _in_words(wholly=share > 0.5, partly=share > 0.05)
    shown = f"{signed['divided']:,} of {signed['signs']:,} signs ({100 * share:.0f} %) are"
    return [one, Claim("Hindi's combining signs are divided into bytes", shown, verdict)]


def _in_words(*, wholly: bool, partly: bool) -> str:
    if wholly:
        return "right"
    return "in part" if partly else "wrong"


def _language_claims(kinds: Sequence[dict[str, Any]]) -> list[Claim]:
    """Claims about languages, which must hold in every kind of text that has the languages."""
    orders = (
        ("The same content takes fewest tokens in Chinese", "per_text", "zh<en,zh<ja,zh<hi,zh<eu"),
        ("Japanese takes more tokens than English", "per_text", "en<ja"),
        ("Hindi takes most tokens", "per_text", "ja<hi,eu<hi,eo<hi,en<hi"),
        ("Basque takes more tokens than Esperanto", "per_text", "eo<eu"),
        (
            "Japanese is cut closer to single characters than Chinese",
            "characters_per_token",
            "ja<zh",
        ),
        ("Hindi falls into parts of characters most", "fragments", "zh<hi,en<hi,ja<hi,eu<hi,eo<hi"),
        ("Basque and Esperanto are cut finer than English", "characters_per_token", "eu<en,eo<en"),
    )
    found = [_order_claim(kinds, claim, figure, order) for claim, figure, order in orders]
    limits: tuple[tuple[str, str, Callable[[float], bool], str], ...] = (
        ("A Hindi token carries only a few bytes", "hi", lambda x: x < 5, "bytes_per_token"),
        (
            "Rare languages fall into pieces of one or two characters (Basque)",
            "eu",
            lambda x: x <= 2,
            "characters_per_token",
        ),
    )
    for claim, language, holds, figure in limits:
        values = [k["languages"][language][figure] for k in kinds if language in k["languages"]]
        if values:
            shown = f"{FIGURES[figure]}: {' and '.join(f'{v:.2f}' for v in values)}"
            found.append(Claim.judged(claim, shown, all(map(holds, values))))
    return [one for one in found if one is not None]


def _order_claim(
    kinds: Sequence[dict[str, Any]], claim: str, figure: str, order: str
) -> Claim | None:
    """Whether one language has less than another, in how many of the comparisons."""
    held: list[bool] = []
    shown: dict[str, list[float]] = {}
    for pair in order.split(","):
        small, large = pair.split("<")
        for kind in kinds:
            rows = kind["languages"]
            if small in rows and large in rows:
                held.append(rows[small][figure] < rows[large][figure])
                shown.setdefault(small, []).append(rows[small][figure])
                shown.setdefault(large, []).append(rows[large][figure])
    if not held:
        return None
    means = ", ".join(f"{NAMES[name]} {statistics.mean(v):.3g}" for name, v in shown.items())
    verdict = _in_words(wholly=all(held), partly=any(held))
    return Claim(claim, f"{FIGURES[figure]}: {means}", verdict)


def _count_claim() -> Claim:
    """Its token totals equal the positions its code counts, which leave out each first one."""
    ratio = COUNTED["ja"] / COUNTED["zh"]
    whole = (COUNTED["ja"] + N_PROMPTS) / (COUNTED["zh"] + N_PROMPTS)
    return Claim.judged(
        f"Japanese takes {ratio:.2f} times the tokens of Chinese on its 15 prompts",
        "the totals are those of positions after the first, as its feature counts; with the first "
        f"tokens it is {whole:.2f}",
        abs(ratio - whole) < 0.01,
    )
