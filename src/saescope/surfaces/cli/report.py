"""`saescope report`: a run as one HTML page."""

from saescope.jobs.report import ReportRequest
from saescope.surfaces.cli.options import Output, command
from saescope.surfaces.cli.show import TERMINAL, print_json
from saescope.surfaces.visible import visible


@command
def report(request: ReportRequest, *, output: Output = Output()) -> None:
    from saescope.surfaces.report import write_page

    page = write_page(request.run(TERMINAL), request.out)
    if output.json:
        print_json({"report": str(page)})
    else:
        print(visible(str(page)))
