"""Tokens that hold parts of characters: the last one shows the character, the others nothing."""

import re
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

import tiny
from saescope.analysis.examples import examples
from saescope.analysis.pieces import shown_tokens
from saescope.engine.extract import extract
from saescope.engine.lm import load_lm
from saescope.engine.load import load_sae
from saescope.engine.scan import scan
from saescope.engine.tokens import TokenText
from saescope.sources.catalog import Feature
from saescope.sources.characters import whole_characters
from saescope.sources.prompts import texts
from saescope.surfaces.report import write_report

TEXTS = {
    "cjk": "来年その鳩が美しい。天气很好",
    "emoji": "👩‍👩‍👧 and ❤️‍🔥, 🇯🇵!",
    "thai": "ที่นี่มีน้ำ",
    "arabic": "اللغة العربية",
    "devanagari": "नमस्ते दुनिया",
    "escapes": r"C:\xe5 \x41 is text",
    "plain": "  two spaces, a\nline",
}


def byte_fallback() -> PreTrainedTokenizerFast:
    """Llama's kind: ▁ for spaces, one before a text, and a token per byte of other characters."""
    letters = sorted({*"abcdefghijklmnopqrstuvwxyz,.!:CT▁\n"} | {"年", "で"})
    vocab = ["<unk>", "<s>", *(f"<0x{n:02X}>" for n in range(256)), *letters, "▁a"]
    ids = {token: n for n, token in enumerate(vocab)}
    bpe = Tokenizer(models.BPE(ids, [("▁", "a")], unk_token="<unk>", byte_fallback=True))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bpe.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", unk_token="<unk>")


TOKENIZERS = {
    "byte-level": tiny.tokenizer([("Ġ", "t"), ("ã", "ģ"), ("ä", "¸")]),
    "byte fallback": byte_fallback(),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("name", TEXTS)
def test_shown_tokens_are_the_text(kind: str, name: str) -> None:
    tokenizer, text = TOKENIZERS[kind], TEXTS[name]
    ids = tokenizer(text)["input_ids"]
    token_text = TokenText(tokenizer)
    shown = token_text.in_context(ids)
    assert len(shown) == len(ids)
    assert "".join(shown) == tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    stored = [token_text(token) for token in ids]
    assert shown_tokens(stored, [True] * len(ids), text) == shown


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_character_belongs_to_the_token_that_completes_it(kind: str) -> None:
    ids = TOKENIZERS[kind]("a鳩a")["input_ids"]
    shown = [text.strip() for text in TokenText(TOKENIZERS[kind]).in_context(ids)]
    assert shown == ["a", "", "", "鳩", "a"]


def test_special_tokens_are_shown_as_they_are() -> None:
    tokenizer = TOKENIZERS["byte fallback"]
    ids = [tokenizer.bos_token_id, *tokenizer("年鳩")["input_ids"]]
    assert TokenText(tokenizer).in_context(ids) == ["<s>", " ", "年", "", "", "鳩"]
    stored = ["<s>", " ", "年", "\\xe9", "\\xb3", "\\xa9"]
    is_text = [False, True, True, True, True, True]
    assert shown_tokens(stored, is_text, "年鳩") == ["<s>", "", "年", "", "", "鳩"]


def test_bytes_of_no_character_are_escaped() -> None:
    assert whole_characters([b"\xff\xe8", b"\xb5\xa4", b"\xe8a", b"\xe8"]) == [
        "\\xff",
        "赤",
        "\\xe8a",
        "\\xe8",
    ]


def test_heat_maps_and_scans_show_characters(tmp_path: Path) -> None:
    folder = tiny.save_model(tmp_path / "model", tok=TOKENIZERS["byte-level"])
    saes = [load_sae(tiny.save_sae(tmp_path / "sae"), 1)]
    lm = load_lm(folder, [1])
    sets = texts([TEXTS["cjk"], TEXTS["thai"]])
    scanned = scan(lm, saes, sets[0].prompts, n_top=1)
    assert ["".join(t.token for t in p.tokens) for p in scanned.prompts] == [
        TEXTS["cjk"],
        TEXTS["thai"],
    ]
    run = extract(lm, saes, sets, tmp_path / "run")
    feature = Feature(1, scanned.prompts[0].tokens[3].features[1][0][0].id)
    shown = examples(run, feature, n=1).examples[0]
    assert "".join(token.text for token in shown.tokens) in TEXTS.values()
    assert not re.search(r"\\x[0-9a-f]{2}", write_report(run).read_text())
