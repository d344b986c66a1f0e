"""`saescope export`: edits, SAEs and runs as files that other programs load."""

from typing import TYPE_CHECKING

from rich.console import Console

from saescope.jobs.export import ExportRequest
from saescope.surfaces.cli.lines import print_line
from saescope.surfaces.cli.options import Output, command
from saescope.surfaces.cli.show import TERMINAL, cell, present, print_finding

if TYPE_CHECKING:
    from saescope.control.exports.export_result import ExportResult

_DISTANCES = {
    "kl_hook_adapter": "from the projection by hooks to the adapter",
    "kl_steered_adapter": "from the edits as steered to the adapter",
    "kl_base_adapter": "from the model without edits to the adapter",
    "kl_complete_adapter": "from the adapter with the embedding to the one without",
    "kl_steered_vector": "from the edits as steered to the control vector",
    "kl_base_vector": "from the model without edits to the control vector",
}


@command
def export(request: ExportRequest, *, output: Output = Output()) -> None:
    result = request.run(TERMINAL)
    present(result, output, lambda console: show_export(console, result))


def show_export(console: Console, result: "ExportResult") -> None:
    """Print the files, what they do, and how that differs from the edits."""
    label = "exact" if result.exact else "not exact"
    print_finding(console, f"{result.out}: {result.format}, {label}; does: {result.equals}")
    lines = [f"{path}  {path.stat().st_size:,} bytes" for path in result.files]
    lines.extend(f"- {limit}" for limit in result.limits)
    if "model_class" in result.measured:
        name, opened_by = result.measured["model_class"], result.measured["opened_by"]
        lines.append(f"for: {name}, which {opened_by} opens; in another class it may do nothing")
    for name, distance in result.measured.items():
        if name in _DISTANCES:
            lines.append(
                f"KL {_DISTANCES[name]}: {distance['mean']:.2g} nats per token, "
                f"p99 {distance['p99']:.2g}"
            )
    for dtype, share in result.measured.get("component_left", {}).items():
        lines.append(f"left of the component in the last residual, in {dtype}: {100 * share:.2g} %")
    for line in lines:
        print_line(console, cell(line))
