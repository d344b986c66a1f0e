"""`saescope demo`: the main job on the embedded pair, from prompts to a report."""

from pathlib import Path

from rich.console import Console

from saescope.jobs.demo import DECLINING, Demo, DemoRequest
from saescope.surfaces.cli.contrast import show_contrast
from saescope.surfaces.cli.interrupts import command_line
from saescope.surfaces.cli.lines import print_line
from saescope.surfaces.cli.options import Output, command
from saescope.surfaces.cli.profile import show_profile
from saescope.surfaces.cli.scan import show_scan
from saescope.surfaces.cli.show import TERMINAL, cell, print_json, print_result
from saescope.surfaces.cli.tables import ResultTable
from saescope.surfaces.report import write_report
from saescope.surfaces.visible import visible

_FEATURES_PER_SET = 3


@command
def demo(request: DemoRequest = DemoRequest(), *, output: Output = Output()) -> None:
    demo = request.run(TERMINAL)
    report = write_report(demo.run)
    if output.json:
        print_json({**demo.to_dict(), "report": str(report)})
    else:
        print_result(lambda console: _show(console, demo, report))


def _show(console: Console, demo: Demo, report: Path) -> None:
    show_contrast(console, demo.contrast, n_top=_FEATURES_PER_SET)
    show_profile(console, demo.profile)
    show_scan(console, demo.scan)
    _steering(demo).print(console)
    run = cell(str(demo.run.path))
    print_line(console, f"\nAll of it as a page: {cell(str(report))}")
    print_line(console, f"The run is {run}. Ask it more questions without a model, such as:")
    command = visible(command_line("contrast", str(demo.run.path)))
    console.print(f"  {command}", markup=False, soft_wrap=True)


def _steering(demo: Demo) -> ResultTable:
    """One request, answered with and without the edit."""
    title = "a chat model that declines one topic, steered"
    table = ResultTable(title, text=("", "text"), header=False)
    table.add("request", cell(demo.steer_prompt))
    table.add("without", cell(demo.steering.base))
    table.add(f"with {DECLINING}", cell(demo.steering.steered))
    return table
