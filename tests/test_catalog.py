"""The published releases as their cards describe them, and names read by their grammar."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saescope.errors import SourceError
from saescope.sources.catalog import (
    RELEASES,
    Feature,
    SaeName,
    find_release,
    parse_sae_name,
    releases_for,
)

# key after Qwen/SAE-Res-, d_model, d_sae, k, layers, GB a layer, GB in all: from the model cards.
CARDS = [
    ("Qwen3-1.7B-Base-W32K-L0_50", 2048, 32768, 50, 28, 0.537, 15.0),
    ("Qwen3-1.7B-Base-W32K-L0_100", 2048, 32768, 100, 28, 0.537, 15.0),
    ("Qwen3-8B-Base-W64K-L0_50", 4096, 65536, 50, 36, 2.148, 77.3),
    ("Qwen3-8B-Base-W64K-L0_100", 4096, 65536, 100, 36, 2.148, 77.3),
    ("Qwen3.5-2B-Base-W32K-L0_50", 2048, 32768, 50, 24, 0.537, 12.9),
    ("Qwen3.5-2B-Base-W32K-L0_100", 2048, 32768, 100, 24, 0.537, 12.9),
    ("Qwen3.5-9B-Base-W64K-L0_50", 4096, 65536, 50, 32, 2.148, 68.7),
    ("Qwen3.5-9B-Base-W64K-L0_100", 4096, 65536, 100, 32, 2.148, 68.7),
    ("Qwen3.5-27B-W80K-L0_50", 5120, 81920, 50, 64, 3.356, 214.8),
    ("Qwen3.5-27B-W80K-L0_100", 5120, 81920, 100, 64, 3.356, 214.8),
    ("Qwen3-30B-A3B-Base-W32K-L0_50", 2048, 32768, 50, 48, 0.537, 25.8),
    ("Qwen3-30B-A3B-Base-W128K-L0_100", 2048, 131072, 100, 48, 2.148, 103.1),
    ("Qwen3.5-35B-A3B-Base-W32K-L0_50", 2048, 32768, 50, 40, 0.537, 21.5),
    ("Qwen3.5-35B-A3B-Base-W128K-L0_100", 2048, 131072, 100, 40, 2.148, 85.9),
]


def test_the_cards_are_all_releases() -> None:
    assert sorted(r.repo for r in RELEASES) == sorted(f"Qwen/SAE-Res-{key}" for key, *_ in CARDS)


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card[0])
def test_release_is_as_its_card_says(card: tuple[str, int, int, int, int, float, float]) -> None:
    key, d_model, d_sae, k, n_layers, layer_gb, whole_gb = card
    release = find_release(f"Qwen/SAE-Res-{key}")
    assert release is not None
    assert (release.d_model, release.d_sae, release.k, release.n_layers) == (
        d_model,
        d_sae,
        k,
        n_layers,
    )
    assert release.layer_bytes / 1e9 == pytest.approx(layer_gb, abs=0.0005)
    assert release.layer_bytes * n_layers / 1e9 == pytest.approx(whole_gb, abs=0.05)
    name = parse_sae_name(f"SAE-Res-{key}")
    assert name == (release.model.removeprefix("Qwen/"), d_sae, k)
    assert release in releases_for(release.model)


@pytest.mark.parametrize(
    ("slug", "repo"),
    [
        ("qwen-scope-3-8b-base-w64k-l50", "Qwen/SAE-Res-Qwen3-8B-Base-W64K-L0_50"),
        ("qwen-scope-3-30b-a3b-base-w128k-l100", "Qwen/SAE-Res-Qwen3-30B-A3B-Base-W128K-L0_100"),
        ("qwen-scope-3.5-27b-w80k-l50", "Qwen/SAE-Res-Qwen3.5-27B-W80K-L0_50"),
    ],
)
def test_registry_names_find_their_release(slug: str, repo: str) -> None:
    release = find_release(slug)
    assert release is not None
    assert (release.repo, release.slug) == (repo, slug)


def test_registry_names_are_distinct_and_unknown_ones_find_nothing() -> None:
    assert len({r.slug for r in RELEASES}) == len(RELEASES)
    assert all(find_release(r.slug) is r for r in RELEASES)
    assert find_release("qwen-scope-4-8b-base-w64k-l50") is None
    assert releases_for("Qwen/Qwen3-8B") == ()


def test_sparsest_release_of_a_model_comes_first() -> None:
    assert [r.k for r in releases_for("Qwen/Qwen3-30B-A3B-Base")] == [50, 100]


@given(
    model=st.from_regex(r"[A-Za-z0-9.\-]{1,20}", fullmatch=True),
    width=st.integers(1, 999),
    k=st.integers(0, 999),
)
def test_grammar_round_trip(model: str, width: int, k: int) -> None:
    assert parse_sae_name(f"SAE-Res-{model}-W{width}K-L0_{k}") == SaeName(model, width * 1024, k)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "SAE-Res-Qwen3-8B-Base",
        "SAE-Res-X-W64K-L0_",
        "sae-res-X-W1K-L0_1",
        "x/SAE-Res-X-W1K-L0_1",
        "model",
    ],
)
def test_other_names_do_not_follow_the_grammar(name: str) -> None:
    assert parse_sae_name(name) is None


@given(layer=st.integers(0, 100), feature=st.integers(0, 10**6))
def test_feature_round_trip(layer: int, feature: int) -> None:
    assert Feature.parse(str(Feature(layer, feature))) == (layer, feature)


@pytest.mark.parametrize("text", ["", "17", "17/", "/3", "17/-1", "17/3/4", "a/b", "17 3", "1.0/3"])
def test_other_text_is_no_feature(text: str) -> None:
    with pytest.raises(SourceError, match="LAYER/ID"):
        Feature.parse(text)
