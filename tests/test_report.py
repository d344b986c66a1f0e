"""A run's page agrees with the analysis, is harmless and self-contained, and works in a browser."""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saescope.analysis.contrast import ContrastSettings, contrast
from saescope.analysis.detection import DetectSettings
from saescope.analysis.profile import profile
from saescope.analysis.report_findings import gather
from saescope.engine.extract import extract
from saescope.engine.lm import load_lm
from saescope.engine.load import load_sae, open_sae
from saescope.errors import ResourceError, RunError
from saescope.jobs.contrast import ContrastRequest
from saescope.jobs.detect import DetectRequest
from saescope.jobs.inputs import EMBEDDED_MODEL, EMBEDDED_SAE
from saescope.jobs.profile import ProfileRequest
from saescope.jobs.report import report_findings, report_settings
from saescope.jobs.request import Request
from saescope.sources.prompt_sets import bundled_prompts
from saescope.store.masking import Masking
from saescope.store.runs import Run
from saescope.store.verification import verify
from saescope.surfaces.cli import run as saescope
from saescope.surfaces.report import write_report
from saescope.surfaces.report.heat_map import heat_map
from saescope.surfaces.report.page import render
from stored import edit_manifest, write_run

pytestmark = pytest.mark.slow

LAYERS = (1, 2)
HEADINGS = [
    "Findings",
    "Token efficiency",
    "Residual norms",
    "Features that separate the sets",
    "Held-out score by layer",
    "Where the best features fire",
    "Masked positions",
    "Null control: shuffled labels",
    "Warnings",
    "Manifest",
]
HOSTILE = (
    "<script>alert(1)</script>",
    "\u202etxt.exe\u202c",
    "\x00\x07\x1b[31m",
    "a" * 5000,
    "שלום",
    "مرحبا بالعالم",
    "来年",
    "\u0301" * 80,
    '" onmouseover="alert(1)',
    "</span></p></body>",
    "{{ 7 * 7 }}",
    "\n\n",
    "&amp;",
    "\u2066\u200d",
    "]]>-->",
    "मैं",
)
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


class Page(HTMLParser):
    """Elements and text of a page, as a browser would take them apart."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: dict[str, list[str]] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.open.append(tag)
        self.text.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        for tag in self.open:
            self.text[tag][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Run:
    model, sae = EMBEDDED_MODEL, EMBEDDED_SAE
    saes = [load_sae(open_sae(sae), layer) for layer in LAYERS]
    return extract(
        load_lm(model, LAYERS),
        saes,
        bundled_prompts(),
        tmp_path_factory.mktemp("runs") / "languages",
    )


@pytest.fixture(scope="module")
def text(embedded: Run) -> str:
    return page_of(embedded)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Names and tokens that try to escape the page, norms with sinks, a feature for each set."""
    names = ("<img src=x onerror=alert(1)>", "中文 \u202e", "a" * 200, "plain")
    prompts, length = 12, 16
    total = len(names) * prompts * length
    rng = np.random.default_rng(0)
    fires = rng.random((total, 9)) < 0.15
    set_of_token = np.repeat(np.arange(len(names)), prompts * length)
    fires[np.arange(total), set_of_token] = rng.random(total) < 0.8
    norms = np.exp(rng.normal(4, 0.2, total)).astype(np.float32)
    norms[::length] *= 100
    norms[7::160] *= 50
    out = tmp_path_factory.mktemp("hostile") / "run"
    layers = {0: fires, 3: fires}
    return write_run(
        out,
        dict.fromkeys(names, [length] * prompts),
        layers,
        norms,
        model="<b>m</b>/x",
        words=HOSTILE,
    )


def page_of(run: Run) -> str:
    return render(report_findings(run))


def two_sets(out: Path, length: int = 8, **options: Any) -> Run:
    fires = np.zeros((20 * length, 2), bool)
    fires[: 10 * length, 0] = fires[10 * length :, 1] = True
    return write_run(out, {"a": [length] * 10, "b": [length] * 10}, {2: fires}, **options)


def test_page_has_its_sections_in_order(text: str) -> None:
    page = Page(text)
    assert page.text["h2"] == HEADINGS
    assert page.text["h1"] == ["Features of 7 prompt sets in saescope-tiny"]
    assert all(head["scope"] in ("col", "row", "rowgroup") for head in page.all("th"))
    drawn = [svg for svg in page.all("svg") if svg["role"] == "img" and svg["aria-label"]]
    assert len(drawn) == len(page.all("svg")) == 14
    assert len(page.text["figcaption"]) >= 14
    ids = [attributes["id"] for _, attributes in page.elements if attributes.get("id")]
    assert len(ids) == len(set(ids))
    labels = [attributes.get("aria-labelledby") for _, attributes in page.elements]
    assert {label for label in labels if label} <= set(ids)


def test_page_agrees_with_the_analysis(embedded: Run, text: str) -> None:
    contrasted, profiled = contrast(embedded, ContrastSettings()), profile(embedded)
    words = " ".join(re.sub(r"<[^>]+>", "", text).split())
    for layer in LAYERS:
        for name, set_result in contrasted.layers[layer].sets.items():
            best = next(f for f in set_result.features if f.confirmed)
            rate, other_rate = 100 * best.holdout_rate, 100 * best.holdout_other_rate
            assert f"{best.feature}{rate:.1f} / {other_rate:.1f} %" in words, name
    best_layer = max(
        LAYERS,
        key=lambda n: sum(s.features[0].holdout_score for s in contrasted.layers[n].sets.values()),
    )
    for set_result in contrasted.layers[best_layer].sets.values():
        best = next(f for f in set_result.features if f.confirmed)
        rate = 100 * best.holdout_rate
        assert f"Feature {best.feature} fires on {rate:.1f} % of held-out positions" in words
    for set_result in profiled.sets.values():
        assert f"{set_result.tokens_per_prompt:.1f} {set_result.ratio:.2f}×" in words
    assert embedded.manifest["fingerprint"] in text
    assert embedded.model.fingerprint in text
    assert all(sae.fingerprint in text for sae in embedded.saes.values())
    assert "saescope rerun languages\nsaescope verify languages" in text


def test_page_loads_nothing(text: str) -> None:
    page = Page(text)
    assert not {"script", "img", "iframe", "object", "embed", "base"} & {
        tag for tag, _ in page.elements
    }
    addresses = [a[key] for _, a in page.elements for key in ("src", "href") if key in a]
    assert all(address and address.startswith(("#", "data:,")) for address in addresses)
    [policy] = [
        meta["content"]
        for meta in page.all("meta")
        if meta.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'")
    assert not re.search(r"@import|url\((?!#)", text)


def test_same_run_gives_the_same_bytes(
    embedded: Run, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import matplotlib

    shutil.copytree(embedded.path, tmp_path / "languages")
    monkeypatch.chdir(tmp_path)
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path"}):
        before = dict(matplotlib.rcParams)
        written = write_report(Run.open("languages"))
        assert dict(matplotlib.rcParams) == before
    assert written == Path("languages.html")
    assert written.read_text(encoding="utf-8") == text
    assert (tmp_path / "languages.html").stat().st_mode & 0o044  # for others to read, as the run is
    assert not verify("languages")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["languages", "languages.html"]


def test_page_is_never_written_into_a_run(tmp_path: Path) -> None:
    run = two_sets(tmp_path / "run")
    for inside in ("page.html", "manifest.json", "more/page.html"):
        with pytest.raises(RunError, match="lies in the run"):
            write_report(run, run.path / inside)
    assert not verify(run.path)


def test_a_full_disk_leaves_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = two_sets(tmp_path / "run")
    out = tmp_path / "page.html"
    out.write_text("old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="No space left"):
        write_report(run, out)
    assert out.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "run"]


def test_a_folder_in_the_way_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="cannot write"):
        write_report(two_sets(tmp_path / "run"), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="cannot write"):
        write_report(Run.open(tmp_path / "run"), tmp_path / "file" / "page.html")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "run"]


def test_hostile_text_is_shown_and_harmless(hostile: Run) -> None:
    text = page_of(hostile)
    page = Page(text)
    assert not {"script", "b ", "img"} & {tag for tag, _ in page.elements}
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert all(c.isprintable() or c == "\n" for c in text)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert r"\u202etxt.exe\u202c" in text
    assert r"\x00\x07\x1b[31m" in text
    assert "{{ 7 * 7 }}" in text
    assert "&amp;amp;" in text
    assert "a" * 201 not in text
    assert len(page.text["svg"]) == 8
    drawn = "".join(page.text["text"])
    assert not re.search(r"[^\x00-\x7f−]", drawn)  # plots need no fonts for other scripts
    shown = "".join(title["title"] or "" for title in page.all("span") if title.get("title"))
    assert "masked (position 0)" in shown
    assert "masked (sink)" in shown


def test_sinks_are_listed_and_capped(tmp_path: Path) -> None:
    norms = np.ones(160, np.float32)
    norms[np.arange(160) % 8 == 5] = 100
    norms[np.arange(160) % 8 == 6] = 90
    norms[np.arange(160) % 8 == 7] = 80
    norms[np.arange(160) % 8 == 0] = 999
    run = two_sets(tmp_path / "run", norms=norms)
    sinks = gather(run).masked_sinks
    assert len(sinks) == 60
    assert {sink.pos for sink in sinks} == {5, 6, 7}
    assert "20 more are not shown" in page_of(run)


def test_long_prompts_are_shown_around_their_peak(tmp_path: Path) -> None:
    findings = gather(two_sets(tmp_path / "run", length=300))
    best = findings.best_features[0]
    excerpt = best.excerpts[0]
    assert (len(excerpt.tokens), excerpt.n_before, excerpt.n_after) == (120, 0, 180)
    assert heat_map(best).rows[0].cells[0].level == "m"


def test_many_layers_and_sets_stay_small(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = [f"set{n}" for n in range(18)]
    fires = {layer: rng.random((18 * 3 * 4, 20)) < 0.3 for layer in range(10)}
    text = page_of(write_run(tmp_path / "run", dict.fromkeys(names, [4] * 3), fires))
    assert len(text) < 2e6
    assert text.count("<svg") == 32
    assert "The first 16 of 18 sets are drawn" in text
    assert "The best 8 of each set are shown" in text
    assert text.count('class="prompt"') == 18 * 3


def test_one_set_is_profiled_without_a_contrast(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {"only": [5] * 4}, {0: np.ones((20, 2), bool)})
    text = page_of(run)
    assert "not compared" in text
    assert "at least two sets" in text
    assert str(tmp_path) not in text
    assert Page(text).text["h2"] == [
        "Findings",
        "Token efficiency",
        "Residual norms",
        "Warnings",
        "Manifest",
    ]


def test_page_says_if_nothing_is_confirmed(tmp_path: Path) -> None:
    fires = np.random.default_rng(1).random((20 * 8, 6)) < 0.3
    text = page_of(write_run(tmp_path / "run", {"a": [8] * 10, "b": [8] * 10}, {2: fires}))
    assert "No set has a feature in layer 2 that is confirmed" in text
    assert "None has the minimum effect (0 confirmed). The best one," in text
    page = page_of(write_run(tmp_path / "few", {"a": [8] * 2, "b": [8] * 2}, {2: fires[: 4 * 8]}))
    assert "too few held-out prompts" in page


def with_command(run: Run, command: Any) -> Run:
    """The run again, with another command in its manifest."""
    edit_manifest(run.path, lambda manifest: manifest.update(command=command))
    return Run.open(run.path)


def test_page_uses_the_settings_of_the_run(tmp_path: Path) -> None:
    run = two_sets(tmp_path / "run")
    masking = Masking(keep_pos0=True, keep_sinks=True, sink_ratio=7.0)
    settings = ContrastSettings(alpha=0.01, n_top=3, shuffles=0, seed=5, masking=masking)
    run = with_command(run, ContrastRequest(settings=settings).record())
    assert report_settings(run) == settings
    text = page_of(run)
    assert "include position 0" in text
    assert "the command set shuffles to 0" in text


@pytest.mark.parametrize(
    "request_of",
    [
        lambda masking: ProfileRequest(masking=masking),
        lambda masking: DetectRequest("", target="a", settings=DetectSettings(masking=masking)),
    ],
    ids=["profile", "detect"],
)
def test_page_uses_the_masking_of_other_commands(
    request_of: Callable[[Masking], Request], tmp_path: Path
) -> None:
    masking = Masking(keep_pos0=True, keep_sinks=True, sink_ratio=7.0)
    run = with_command(two_sets(tmp_path / "run"), request_of(masking).record())
    assert report_settings(run) == ContrastSettings(masking=masking)


@pytest.mark.parametrize(
    "command",
    [
        "x",
        {},
        {"verb": "contrast", "options": {"settings": {"nonsense": 1}}},
        {"verb": "contrast", "request": {"settings": {"nonsense": 1}}},
        {"verb": "profile", "options": {"masking": 3}},
    ],
)
def test_a_damaged_command_is_one_clear_error(command: Any, tmp_path: Path) -> None:
    run = two_sets(tmp_path / "run")
    with pytest.raises(RunError, match="damaged"):
        page_of(with_command(run, command))


def test_command_prints_the_path_of_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    two_sets(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert saescope(["report", "run"]) == 0
    assert capsys.readouterr().out == "run.html\n"
    assert saescope(["report", "run", "--out", "pages/one.html", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"report": "pages/one.html"}
    assert (tmp_path / "pages/one.html").read_bytes() == (tmp_path / "run.html").read_bytes()
    monkeypatch.chdir(tmp_path / "run")
    (tmp_path / "run.html").unlink()
    assert saescope(["report", "."]) == 0
    assert (tmp_path / "run.html").is_file()


def test_a_path_that_is_no_run_is_one_clear_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        assert saescope(["report", str(path)]) == 2
        assert re.fullmatch(r"saescope: \S+ is not a run: .*\n", capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        pytest.skip("no browser on this machine (scripts/setup installs chromium as root)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        started = driver.chromium.launch(
            executable_path=executable, args=["--no-sandbox"] if os.geteuid() == 0 else []
        )
        yield started
        started.close()


@pytest.fixture(scope="module")
def page_files(
    embedded: Run, hostile: Run, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    return {
        "embedded": write_report(embedded, folder / "embedded.html"),
        "hostile": write_report(hostile, folder / "hostile.html"),
    }


@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["embedded", "hostile"])
def test_page_works_in_a_browser(
    browser: Any, page_files: dict[str, Path], name: str, scheme: str, width: int
) -> None:
    written = page_files[name]
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800})
    page, requests, problems = context.new_page(), [], []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: problems.append(dialog.message))

    def answer(route: Any) -> None:
        if route.request.url == written.as_uri():
            route.continue_()
        else:
            requests.append(route.request.url)
            route.abort()

    page.route("**/*", answer)
    page.goto(written.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert [heading.inner_text() for heading in page.locator("h2").all()] == HEADINGS
    assert all(
        box["width"] > 200 for svg in page.locator("svg").all() if (box := svg.bounding_box())
    )
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    # Tables scroll in their own boxes.
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    colours = page.evaluate(COLOURS)
    ground = luminance(colours["body"][1])
    assert ground > 0.9 if scheme == "light" else ground < 0.05
    for element, (ink, behind) in colours.items():
        assert contrast_ratio(ink, behind if behind[3] else colours["body"][1]) >= 4.5, element
    assert (requests, problems) == ([], [])
    context.close()


COLOURS = """() => {
  const numbers = text => {
    const n = text.match(/[\\d.]+/g).map(Number);
    return n.length < 4 ? [...n, 1] : n;
  };
  const one = element => {
    const style = getComputedStyle(element);
    const ink = element.closest('svg') ? style.fill : style.color;
    return [numbers(ink), numbers(style.backgroundColor)];
  };
  const found = {};
  for (const what of ['body', 'h1', '.quiet', 'thead th', '.yes', 'code.id', 'svg text',
                      '.source', '.t.h8', '.t.h4', '.t.h1', '.hm', 'pre', 'aside'])
    for (const element of document.querySelectorAll(what)) found[what] = one(element);
  return found;
}"""


def luminance(colour: list[float]) -> float:
    channels = [c / 255 for c in colour[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast_ratio(ink: list[float], behind: list[float]) -> float:
    """WCAG's contrast ratio; translucent colours count as opaque, the hardest case."""
    low, high = sorted((luminance(ink), luminance(behind)))
    return (high + 0.05) / (low + 0.05)
