"""`saescope rerun`: the same job again, from a run's manifest alone."""

from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

from cyclopts import Parameter

from saescope.analysis.agreement import agreement
from saescope.errors import RunError
from saescope.store.runs import Run
from saescope.surfaces.cli.show import note, print_json, progress, stdout

# Verbs that ask something of a run, and how their answers are shown.
_SHOW = {
    "contrast": "show_contrast",
    "detect": "show_detection",
    "fitness": "show_fitness",
    "layers": "show_layers",
    "precision": "show_agreement",
    "profile": "show_profile",
}


def rerun(
    run: Path,
    /,
    *,
    out: Path | None = None,
    offline: bool = False,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Repeat the job that made a run, and say whether the result is the same; exits with 1 where it is not.

    Parameters
    ----------
    run
        Directory of the run.
    out
        Keep the repeated run here; it is thrown away when left out.
    offline
        Fetch nothing: only local folders and the hub's cache.
    json
        Print what the job prints with --json, and `rerun`: whether it is the same, and what differs.
    """
    old = Run.open(run)
    with TemporaryDirectory(prefix="saescope-") as temporary:
        new = _again(old, out or Path(temporary) / "run", offline=offline)
        same = old.manifest["tables"] == new.manifest["tables"]
        differences = [] if same else _differences(old, new)
        answered: dict[str, Any] = {}
        verb, options = old.manifest["command"]["verb"], old.manifest["command"]["options"]
        if verb in _SHOW:
            module = import_module(f"saescope.surfaces.cli.{verb}")
            result = module.answer(new, options)
            answered = {**result.to_dict(), "run": str(out or run)}
            if not json:
                getattr(module, _SHOW[verb])(stdout(), result)
    if json:
        print_json({**answered, "rerun": {"same": same, "differences": differences, "verb": verb}})
    else:
        for line in differences:
            note(line)
        stdout().print("the same, byte for byte" if same else "not the same", markup=False)
    return 0 if same else 1


def _again(old: Run, out: Path, *, offline: bool) -> Run:
    from saescope.engine.extract import extract
    from saescope.engine.lm import load_lm
    from saescope.engine.load import load_sae

    job, inputs = old.manifest["job"], old.manifest["inputs"]
    lm = load_lm(
        inputs["model"], old.layers, dtype=job["dtype"], device=job["device"], offline=offline
    )
    saes = [
        load_sae(
            inputs["saes"][str(n)],
            n,
            k=spec.k,
            decoder=job["errors"],
            device=lm.device,
            offline=offline,
        )
        for n, spec in old.saes.items()
    ]
    with progress("features") as advance:
        return extract(
            lm,
            saes,
            old.prompt_sets,
            out,
            batch_tokens=job["batch_tokens"],
            errors=job["errors"],
            command=old.manifest["command"],
            progress=advance,
            kernels=old.manifest.get("kernels", {}),
        )


def _differences(old: Run, new: Run) -> list[str]:
    """What differs: what went in, then how far the features do."""
    lines = [
        f"{key}: was {was}, is {new.manifest['job'][key]}"
        for key, was in old.manifest["job"].items()
        if was != new.manifest["job"][key]
    ]
    lines += [
        f"{name} differs"
        for name, was in old.manifest["tables"].items()
        if was != new.manifest["tables"].get(name)
    ]
    try:
        agreed = agreement(old, new)
    except RunError as error:
        return [*lines, str(error)]
    return lines + [
        f"layer {layer}: {100 * one.topk_jaccard:.2f} % of features are the same, activations differ by "
        f"{100 * one.act_rel_diff:.2g} % (median)"
        for layer, one in agreed.layers.items()
    ]
