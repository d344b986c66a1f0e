"""Measure what the conditions of an evaluation take: saescope, and transformers with hooks.

Both write the replies and measure the KL on neutral texts under the same conditions: no edits,
edits at three strengths, zero, minus, random features and directions, a difference of means
(projected out and added) and an instruction. The folder of real models (SAESCOPE_REAL, or --real)
must have `models/smollm2` and the prompt sets. Prints CPU seconds, because other processes may use
the machine. `--before FOLDER` also measures the saescope of another checkout.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

import saescope as ss
from benchmarks.implementations.plain_conditions import PlainCondition, PlainEdit, PlainScript
from saescope.control.evaluation.arms import Arm, times, with_instruction
from saescope.control.evaluation.runner import ArmRunner, NeutralText, ReplyCounter
from saescope.engine.tokens import prompt_ids
from saescope.sources.directions import Direction
from saescope.store.resume_cache import ResumeCache

LAYER, D_SAE, N_EDITS = 15, 4096, 2
INSTRUCTION = "Answer as briefly as you can."


def main(args: argparse.Namespace) -> None:
    """Measure and print."""
    if args.real is None:
        raise SystemExit("set SAESCOPE_REAL, or pass --real: the folder that scripts/real fills")
    job = Job(args.real, args.prompts, args.texts, args.tokens)
    figures: dict[str, Any] = {"prompts": len(job.prompts), "texts": len(job.texts)}
    figures["conditions"] = len(job.arms)
    replies: dict[str, Any] = {}
    for way in args.only:
        run = job.saescope if way == "saescope" else job.plain
        if way == "plain":
            _ = job.script  # loading the model does not count
        start, wall = time.process_time(), time.perf_counter()
        replies[way] = run()
        figures[way] = time.process_time() - start
        figures[f"{way}, wall"] = time.perf_counter() - wall
    if args.before is not None:
        figures["before"] = _before(args)["saescope"]
    if len(replies) == 2:
        figures |= _agreement(replies["saescope"], replies["plain"])
    print(json.dumps(figures))


class Job:
    """The conditions, and what is replied to and read under each."""

    def __init__(self, real: Path, n_prompts: int, n_texts: int, n_tokens: int) -> None:
        self._folder, self._tokens = str(real / "models" / "smollm2"), n_tokens
        self._lm = ss.load_lm(self._folder, [LAYER])
        _ = self._lm.whole
        sets = ss.read_prompts(real / "sets" / "requests")
        every = [prompt for group in sets for prompt in group.prompts]
        self.prompts = every[:: max(1, len(every) // n_prompts)][:n_prompts]
        [neutral] = ss.read_prompts(real / "sets" / "neutral-smollm2")
        self.texts = [prompt_ids(self._lm, prompt) for prompt in neutral.prompts[:n_texts]]
        random = torch.Generator().manual_seed(0)
        width = self._lm.spec.d_model
        self._mean = 20 * torch.randn(width, generator=random) / width**0.5
        self.arms, self._conditions = self._arms(real)

    def _arms(self, real: Path) -> tuple[list[Arm], list[PlainCondition]]:
        self._sae = _random_sae(real, self._lm.spec.d_model)
        edits = [ss.Edit(f"{LAYER}/{n}", "scale", -6.0, skip_sinks=False) for n in range(N_EDITS)]
        others = [
            [ss.Edit(f"{LAYER}/{9 * k + n}", "scale", -6.0, skip_sinks=False) for n in range(2)]
            for k in (1, 2)
        ]
        mean = Direction(LAYER, self._mean.numpy().astype(np.float32))
        added = ss.Edit(op="add", strength=-1.0, skip_sinks=False, direction=mean)
        projected = ss.Edit(op="project", strength=1.0, skip_sinks=False, direction=mean)
        arms = [Arm("none")]
        arms += [Arm("edits", s, times(edits, s)) for s in (0.5, 1.0, 2.0)]
        arms += [Arm("zero", 0.0, times(edits, 0.0)), Arm("minus", -1.0, times(edits, -1.0))]
        arms += [Arm("random feature", 1.0, tuple(o), draw=str(n)) for n, o in enumerate(others)]
        for seed in (0, 1):
            name = "random direction"
            arms.append(Arm(name, 1.0, tuple(edits), direction_seed=seed, draw=str(seed)))
        arms += [Arm("project", edits=(projected,)), Arm("add", edits=(added,))]
        arms.append(Arm("prompt only", instruction=INSTRUCTION))
        return arms, [self._plain(arm) for arm in arms]

    def _plain(self, arm: Arm) -> PlainCondition:
        edits = []
        noise = torch.randn(
            len(arm.edits),
            self._lm.spec.d_model,
            generator=torch.Generator().manual_seed(arm.direction_seed or 0),
        )
        for n, edit in enumerate(arm.edits):
            if edit.is_noop:
                continue
            feature = 0 if edit.feature is None else edit.target_feature.id
            d = self._mean if edit.feature is None else self._sae.W_dec[:, feature].float()
            if arm.direction_seed is not None:
                d = noise[n] / noise[n].norm() * d.norm()
            w, b = self._sae.W_enc[feature].float(), float(self._sae.b_enc[feature])
            edits.append(PlainEdit(edit.op, edit.amount, w, b, d))  # type: ignore[arg-type]
        return PlainCondition(tuple(edits), arm.instruction is not None)

    def saescope(self) -> list[tuple[list[list[int]], float | None]]:
        """Replies and KL under each condition."""
        settings = ss.EvaluateSettings(max_new_tokens=self._tokens)
        texts = [NeutralText("neutral", ids) for ids in self.texts]
        counter = ReplyCounter(None, 0)
        runner = ArmRunner(
            self._lm, [self._sae], self.prompts, texts, settings, ResumeCache(), counter
        )
        results: list[tuple[list[list[int]], float | None]] = []
        for output in runner.run(self.arms):
            kl = None if output.damage is None else output.damage.kl_mean
            results.append(([reply.ids for reply in output.replies], kl))
        return results

    @cached_property
    def script(self) -> PlainScript:
        """The script, with its model loaded."""
        return PlainScript(self._folder, LAYER)

    def plain(self) -> list[tuple[list[list[int]], float | None]]:
        """The same with transformers alone."""
        instructed = with_instruction(self._lm, self.prompts, INSTRUCTION)
        rows = [prompt_ids(self._lm, prompt) for prompt in self.prompts]
        rows_with = [prompt_ids(self._lm, prompt) for prompt in instructed]
        return self.script.run(self._conditions, rows, rows_with, self.texts, self._tokens)


def _random_sae(real: Path, d_model: int) -> Any:
    """An SAE with random weights: its features fire on half of the tokens."""
    folder = real / "scratch" / "random-sae"
    folder.mkdir(parents=True, exist_ok=True)
    random = torch.Generator().manual_seed(0)
    w = torch.randn(D_SAE, d_model, generator=random) / d_model**0.5
    d = torch.nn.functional.normalize(torch.randn(d_model, D_SAE, generator=random), dim=0)
    zeros = {"b_enc": torch.zeros(D_SAE), "b_dec": torch.zeros(d_model)}
    torch.save({"W_enc": w, "W_dec": d, **zeros}, folder / f"layer{LAYER}.sae.pt")
    (folder / "cfg.json").write_text('{"k": 40}')
    return ss.load_sae(str(folder), LAYER, decoder=True)


def _before(args: argparse.Namespace) -> dict[str, Any]:
    """The figures of the saescope of another checkout, in a process of its own."""
    paths = [str(args.before / "src"), str(Path(__file__).parents[2])]
    command = [sys.executable, "-m", "benchmarks.probes.conditions", "--only", "saescope"]
    command += ["--real", str(args.real), "--prompts", str(args.prompts)]
    command += ["--texts", str(args.texts), "--tokens", str(args.tokens)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _agreement(ours: Sequence[Any], theirs: Sequence[Any]) -> dict[str, float]:
    """The share of the same replies, and the largest relative difference of KL."""
    same: list[bool] = []
    for (our_replies, _), (their_replies, _) in zip(ours, theirs, strict=True):
        same += [a == b for a, b in zip(our_replies, their_replies, strict=True)]
    kls = [(a, b) for (_, a), (_, b) in zip(ours, theirs, strict=True) if a and b]
    worst = max((abs(a - b) / b for a, b in kls), default=0.0)
    return {"same": sum(same) / len(same), "largest difference of KL": worst}


if __name__ == "__main__":
    from_environment = os.environ.get("SAESCOPE_REAL")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.probes.conditions", description=__doc__
    )
    parser.add_argument(
        "--real", type=Path, default=Path(from_environment) if from_environment else None
    )
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--texts", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--before", type=Path, help="another checkout of saescope")
    parser.add_argument("--only", nargs="+", choices=("saescope", "plain"))
    # The bench passes these to every probe.
    parser.add_argument("--times", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cpu", help=argparse.SUPPRESS)
    parser.set_defaults(only=("saescope", "plain"))
    main(parser.parse_args())
