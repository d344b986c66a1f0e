"""docs/real-models.md, assembled from the sections of the experiments that are done."""

import shutil
from pathlib import Path

from proof.experiments.registry import EXPERIMENTS, Experiment
from proof.folder import REPOSITORY, DataFolder

PAGE = REPOSITORY / "docs" / "real-models.md"
IMAGES = REPOSITORY / "docs" / "images" / "real"

_HEAD = """# Real models

Two small real models, and what saescope's methods do on them. Everything here is measured by
`scripts/real`, which also writes this page. The models come as 4-bit packages and are converted
to bfloat16: they are real models, slightly worse than their originals. The SAEs are small (4,096
features) and were trained for minutes on half a million positions: their features are coarser
than those of Qwen-Scope. Results that speak against a method are shown like all others.
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
    parts = [_HEAD]
    for experiment in EXPERIMENTS:
        if (folder.results / f"{experiment.name}.json").exists():
            parts.append(_section(experiment, folder))
            _copy_pictures(experiment, folder, images)
    text = "\n".join(part.rstrip("\n") + "\n" for part in [*parts, _REPEAT])
    page.write_text(text, encoding="utf-8")


def _section(experiment: Experiment, folder: DataFolder) -> str:
    return experiment.section(folder.read_result(experiment.name))


def _copy_pictures(experiment: Experiment, folder: DataFolder, images: Path) -> None:
    for picture in sorted(folder.results.glob(f"{experiment.name}-*")):
        if picture.suffix in (".svg", ".png"):
            images.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(picture, images / picture.name)
