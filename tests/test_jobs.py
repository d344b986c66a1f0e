"""Requests are typed values: they become JSON, come back equal, and repeat what made a run."""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from conftest import Pair
from saescope.analysis.contrast import ContrastSettings
from saescope.analysis.detection import DetectSettings
from saescope.errors import RunError, SaescopeError
from saescope.jobs.contrast import ContrastRequest
from saescope.jobs.detect import DetectRequest
from saescope.jobs.fitness import FitnessRequest
from saescope.jobs.inputs import ModelInputs
from saescope.jobs.layers import LayersRequest
from saescope.jobs.precision import PrecisionRequest
from saescope.jobs.profile import ProfileRequest
from saescope.jobs.questions import QUESTIONS, Question, read_command
from saescope.jobs.registry import REQUESTS
from saescope.jobs.rerun import RerunRequest
from saescope.jobs.scan import ScanRequest
from saescope.store.masking import Masking
from saescope.surfaces.cli import COMMANDS
from stored import edit_manifest

# What a request needs beside its defaults.
REQUIRED: Mapping[str, Mapping[str, Any]] = {
    "bake": {"out": "baked"},
    "detect": {"sets": "languages", "target": "japanese"},
    "diff": {"a": "one", "b": "other"},
    "evaluate": {"prompts": "requests"},
    "export": {"format": "lora", "out": "adapter"},
    "report": {"directory": "runs/a"},
    "rerun": {"directory": "runs/a"},
    "select": {"sets": "languages", "target": "japanese"},
    "steer": {"prompt": "The dog"},
    "verify": {"directory": "runs/a"},
}
# Commands of manifests written before requests were typed, and the questions they were.
EARLIER: list[tuple[dict[str, Any], Question]] = [
    (
        {
            "verb": "contrast",
            "options": {
                "settings": {
                    "alpha": 0.01,
                    "n_top": 3,
                    "shuffles": 20,
                    "seed": 0,
                    "masking": {
                        "keep_pos0": True,
                        "keep_sinks": False,
                        "sink_ratio": 10.0,
                        "last": None,
                    },
                },
                "layers": [0, 2],
            },
        },
        ContrastRequest(
            settings=ContrastSettings(alpha=0.01, n_top=3, masking=Masking(keep_pos0=True)),
            inputs=ModelInputs(layers=(0, 2)),
        ),
    ),
    (
        {
            "verb": "detect",
            "options": {
                "target": "japanese",
                "against": ["english"],
                "transfer": {"chinese": ["code", "hindi"], "basque": []},
                "settings": {
                    "min_rate": 0.8,
                    "max_other": 0.1,
                    "max_k": 10,
                    "alpha": 0.05,
                    "shuffles": 100,
                    "seed": 0,
                    "masking": {
                        "keep_pos0": False,
                        "keep_sinks": False,
                        "sink_ratio": 10.0,
                        "last": 5,
                    },
                },
                "layers": None,
            },
        },
        DetectRequest(
            "",
            target="japanese",
            against=("english",),
            transfer=("chinese:code+hindi", "basque"),
            settings=DetectSettings(max_other=0.1, masking=Masking(last=5)),
        ),
    ),
    (
        {
            "verb": "layers",
            "options": {
                "masking": {
                    "keep_pos0": False,
                    "keep_sinks": False,
                    "sink_ratio": 10.0,
                    "last": None,
                },
                "seed": 3,
                "feature": "2/5",
                "layers": [0, 2],
                "offline": True,
            },
        },
        LayersRequest(seed=3, feature="2/5", inputs=ModelInputs(layers=(0, 2), offline=True)),
    ),
    (
        {
            "verb": "profile",
            "options": {
                "masking": {
                    "keep_pos0": False,
                    "keep_sinks": True,
                    "sink_ratio": 10.0,
                    "last": None,
                },
                "layers": None,
                "n_samples": 5,
                "seed": 0,
            },
        },
        ProfileRequest(samples=5, masking=Masking(keep_sinks=True)),
    ),
    (
        {
            "verb": "precision",
            "options": {
                "masking": {
                    "keep_pos0": False,
                    "keep_sinks": False,
                    "sink_ratio": 10.0,
                    "last": None,
                },
                "against": "/runs/a",
            },
        },
        PrecisionRequest(reference=Path("/runs/a")),
    ),
    ({"verb": "fitness", "options": {"base": "/runs/base"}}, FitnessRequest(base="/runs/base")),
]


def test_every_command_has_a_request() -> None:
    verbs = {command.verb for commands in COMMANDS.values() for command in commands}
    verbs -= {"serve"}  # no job: it does not end
    assert verbs == set(REQUESTS)
    assert all(REQUESTS[verb].verb == verb for verb in verbs)


@pytest.mark.parametrize("verb", sorted(REQUESTS))
def test_request_comes_back_from_json(verb: str) -> None:
    request = REQUESTS[verb].from_dict(REQUIRED.get(verb, {}))
    stored = json.loads(json.dumps(request.to_dict()))
    assert REQUESTS[verb].from_dict(stored) == request


@pytest.mark.parametrize("verb", sorted(REQUESTS))
def test_json_schema_describes_every_field(verb: str) -> None:
    schema = REQUESTS[verb].json_schema()
    assert set(schema["properties"]) == {field.name for field in fields(REQUESTS[verb])}
    dataclasses = [schema, *schema.get("$defs", {}).values()]
    for dataclass in dataclasses:
        for name, field in dataclass["properties"].items():
            assert "$ref" in field or field.get("description"), f"{verb}: {name} has no docstring"


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"set": "languages"}, "set: unexpected keyword argument"),
        ({"settings": {"alhpa": 0.1}}, "settings.alhpa: unexpected keyword argument"),
        ({"settings": {"alpha": "low"}}, "settings.alpha: input should be a valid number"),
        ({"settings": {"n_top": True}}, "settings.n_top: input should be a valid integer"),
        ({"inputs": {"dtype": "int8"}}, "inputs.dtype: input should be 'auto', 'float32'"),
    ],
)
def test_request_refuses_what_it_does_not_know(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(SaescopeError, match="not a contrast request") as refusal:
        ContrastRequest.from_dict(values)
    assert reason in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("command", "question"), EARLIER, ids=[c["verb"] for c, _ in EARLIER])
def test_commands_of_earlier_runs_are_read(command: dict[str, Any], question: Question) -> None:
    assert read_command(command, Path("run")) == question


def test_every_question_of_earlier_runs_is_tried() -> None:
    assert {command["verb"] for command, _ in EARLIER} == set(QUESTIONS)


@pytest.mark.parametrize(
    "command",
    [
        {},
        {"verb": "contrast"},
        {"verb": "contrast", "options": {}},
        {"verb": "contrast", "request": {"settings": {"alpha": "low"}}},
        {"verb": "detect", "options": {"target": 3, "against": None, "transfer": None}},
    ],
)
def test_damaged_command_is_refused(command: dict[str, Any]) -> None:
    with pytest.raises(RunError, match="command cannot be read"):
        read_command(command, Path("run"))


@pytest.mark.parametrize("verb", ["demo", "extract"])
def test_runs_without_a_question_have_none(verb: str) -> None:
    assert read_command({"verb": verb, "request": {}}, Path("run")) is None


def test_manifest_holds_the_request_that_made_the_run(
    pair: Pair, sets_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    request = ContrastRequest(
        str(sets_folder),
        settings=ContrastSettings(n_top=2, shuffles=1),
        inputs=ModelInputs(model=str(pair.model), sae=str(pair.sae), layers=(0, 2)),
        out=tmp_path / "run",
    )
    answer = request.run()
    command = answer.run.manifest["command"]
    assert command["verb"] == "contrast"
    assert "out" not in command["request"]  # where a result goes is no part of the question
    question = read_command(command, answer.run.path)
    assert question is not None
    assert question.ask(answer.run).to_dict() == answer.to_dict()
    assert capfd.readouterr().out == ""  # a job prints nothing itself


def test_run_of_an_earlier_version_is_repeated(
    pair: Pair, sets_folder: Path, tmp_path: Path
) -> None:
    inputs = ModelInputs(model=str(pair.model), sae=str(pair.sae), layers=(0, 2))
    profiled = ProfileRequest(str(sets_folder), inputs=inputs, out=tmp_path / "run").run()
    command = next(command for command, _ in EARLIER if command["verb"] == "profile")
    edit_manifest(profiled.run.path, lambda manifest: manifest.update(command=command))
    repeated = RerunRequest(profiled.run.path).run()
    assert repeated.same
    assert repeated.answer is not None


def test_scan_request_gives_what_scan_gives(pair: Pair) -> None:
    inputs = ModelInputs(model=str(pair.model), sae=str(pair.sae), layers=(1,))
    scanned = ScanRequest(("ab cd ef",), inputs=inputs).run()
    assert [token.pos for token in scanned.prompts[0].tokens][:3] == [0, 1, 2]
