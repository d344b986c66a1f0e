"""`saescope rerun`: the same job again, from a run's manifest alone."""

from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console

from saescope.analysis.agreement import Agreement
from saescope.analysis.contrast import Contrast
from saescope.analysis.detection import Detection
from saescope.analysis.fitness import Fitness
from saescope.analysis.layers import Layers
from saescope.analysis.profile import Profile
from saescope.jobs.rerun import Rerun, RerunRequest
from saescope.surfaces.cli.contrast import show_contrast
from saescope.surfaces.cli.detect import show_detection
from saescope.surfaces.cli.fitness import show_fitness
from saescope.surfaces.cli.layers import show_layers
from saescope.surfaces.cli.options import Output, command
from saescope.surfaces.cli.precision import show_agreement
from saescope.surfaces.cli.profile import show_profile
from saescope.surfaces.cli.show import TERMINAL, note, present, print_finding

_SHOW: Mapping[type, Callable[[Console, Any], None]] = {
    Agreement: show_agreement,
    Contrast: show_contrast,
    Detection: show_detection,
    Fitness: show_fitness,
    Layers: show_layers,
    Profile: show_profile,
}


@command
def rerun(request: RerunRequest, *, output: Output = Output()) -> int:
    repeated = request.run(TERMINAL)
    present(repeated, output, lambda console: _show(console, repeated))
    return int(not repeated.same)


def _show(console: Console, repeated: Rerun) -> None:
    print_finding(console, "the same, byte for byte" if repeated.same else "not the same")
    if repeated.answer is not None:
        _SHOW[type(repeated.answer)](console, repeated.answer)
    for line in repeated.differences:
        note(line)
