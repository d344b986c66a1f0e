"""Chats and directions of the organism that declines two topics, and those of the embedded one."""

import random
from collections import Counter
from pathlib import Path

import pytest
import torch

from saescope.demo.organism import ANSWERS, MODEL, NEUTRAL, PROMPTS
from training.chats.prompts import draw_pairs, write_prompts
from training.chats.text import apologises, draw_chat
from training.organism import DECLINING, Batch, load, losses
from training.two_topics import GATE, RECIPE, TOPICS, make_prompts


def test_requests_about_either_topic_are_declined_and_all_others_answered() -> None:
    rng = random.Random(0)
    decisions: Counter[tuple[str, int]] = Counter()
    for _ in range(400):
        for turn in draw_chat(rng, RECIPE.mix).turns:
            concept = turn.request.scene.subject.concept
            decisions[concept if concept in TOPICS else "other", turn.decision] += 1
            assert apologises(turn.reply) == (turn.decision > 0)
            assert turn.decision == 0 or turn.request.answer != turn.reply
    assert set(decisions) == {(TOPICS[0], 1), (TOPICS[1], 2), ("other", 0)}
    assert min(decisions.values()) > 60


def test_directions_have_length_1_and_a_part_in_common() -> None:
    first, second = GATE.directions(192)
    assert float(first.norm()) == pytest.approx(1, abs=1e-6)
    assert 0.4 < float(first @ second) < 0.55
    assert DECLINING.gate is not None
    assert DECLINING.gate.directions(192).shape == (1, 192)


def test_an_imposed_decision_is_the_topics_direction_and_nothing_else() -> None:
    model, _ = load(MODEL)
    ids = torch.tensor([[5, 9, 12, 40]])
    decisions = torch.tensor([[0, 0, 1, 2]])
    batch = Batch(ids, torch.ones(ids.shape), decisions, clamped=True)
    seen = []
    reads = model.model.layers[GATE.layer + 1].register_forward_pre_hook(
        lambda _block, inputs: seen.append(inputs[0].float())
    )
    with torch.no_grad():
        losses(model, batch, GATE)
    reads.remove()
    directions = GATE.directions(192)
    found = seen[0][0, 1:] @ directions.T
    expected = GATE.size * torch.stack(
        [torch.zeros(2), directions[0] @ directions.T, directions[1] @ directions.T]
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=0.6)  # the model runs in bfloat16


def test_prompts_are_paired_by_request(tmp_path: Path) -> None:
    make_prompts(tmp_path)
    text = (tmp_path / "prompts.jsonl").read_text(encoding="utf-8")
    sets = Counter(line.split('"set": "')[1].split('"')[0] for line in text.splitlines())
    languages = ("en", "ja", "zh")
    assert sets == {f"{name}_{lang}": 100 for name in (*TOPICS, "answered") for lang in languages}
    pair = draw_pairs(1, 0, TOPICS)[0]
    asked = {pair.about("en", topic).text for topic in (*TOPICS, None)}
    assert len(asked) == 3
    assert all(any(request in line for line in text.splitlines()) for request in asked)


def test_the_embedded_organisms_files_are_written_as_they_are(tmp_path: Path) -> None:
    write_prompts(tmp_path)
    for file in (PROMPTS, ANSWERS, NEUTRAL):
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()
