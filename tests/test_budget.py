"""Memory of a job in each mode, which mode fits a budget, and amounts as people write them."""

from dataclasses import replace
from pathlib import Path

import pytest

from saescope.errors import ResourceError
from saescope.sources import machine
from saescope.sources.budget import (
    LIBRARIES,
    MODES,
    PROGRAM,
    Footprint,
    JobSizes,
    WeightBytes,
    choose_mode,
    footprint,
    suggest_changes,
)
from saescope.sources.machine import (
    free_disk,
    free_memory,
    guess_device,
    parse_bytes,
    parse_rate,
    show_bytes,
)

GB = 10**9
# About Qwen3-8B in bfloat16, layers 0 and 17, in round numbers.
SIZES = JobSizes(
    embedding=WeightBytes(mapped=GB),
    blocks=(WeightBytes(mapped=GB // 2),) * 18,
    rest=WeightBytes(mapped=7 * GB),
    encoder=GB,
    n_saes=2,
    activations=GB // 5,
    kept=GB // 50,
    encode_block=GB // 10,
)


def widened(weights: WeightBytes) -> WeightBytes:
    """The same weights, converted to twice their size."""
    return WeightBytes(converted=2 * weights.mapped, stored=weights.mapped, source=weights.mapped)


CONVERTED = replace(
    SIZES,
    embedding=widened(SIZES.embedding),
    blocks=tuple(map(widened, SIZES.blocks)),
    rest=widened(SIZES.rest),
    encoder=GB // 10,
)


def test_mapped_weights_are_held_a_block_at_a_time() -> None:
    work = PROGRAM + GB // 5
    assert footprint(SIZES, "whole") == Footprint(
        LIBRARIES + GB + 9 * GB + 7 * GB + GB, work + 2 * GB // 50
    )
    assert footprint(SIZES, "cut") == Footprint(LIBRARIES + GB, work + 2 * GB // 50)
    assert footprint(SIZES, "streamed") == Footprint(LIBRARIES + GB, work + GB // 50)
    few_rows = replace(SIZES, rows=2000, encoder=GB // 10)  # the block is more than the rows
    assert footprint(few_rows, "cut").file_backed == LIBRARIES + GB // 2
    wide = replace(few_rows, encoder=2 * GB)  # an encoder is checked before any block is read
    assert footprint(wide, "cut") == Footprint(LIBRARIES + 2 * GB, PROGRAM)
    tokenizer = replace(wide, tokenizer=GB // 10)
    assert footprint(tokenizer, "cut").anonymous == PROGRAM + GB // 10


def test_converted_weights_are_anonymous_memory() -> None:
    work = PROGRAM + GB // 5
    assert footprint(CONVERTED, "cut") == Footprint(
        LIBRARIES, work + 2 * GB // 50 + 2 * (GB + 9 * GB)
    )
    # One block computes while the next one is read.
    assert footprint(CONVERTED, "streamed") == Footprint(
        LIBRARIES + GB // 2, work + GB // 50 + 2 * (GB + 2 * GB // 2)
    )
    # The head's part of the model has an embedding of its own.
    assert footprint(CONVERTED, "whole").anonymous == (
        work + 2 * GB // 50 + 2 * (GB + 9 * GB + 7 * GB + GB)
    )
    packed = replace(CONVERTED, packed_head=3 * GB)
    added = footprint(packed, "whole").anonymous - footprint(CONVERTED, "whole").anonymous
    assert added == 3 * GB
    on_device = footprint(replace(CONVERTED, on_device=True), "cut")
    assert on_device.anonymous == footprint(CONVERTED, "cut").anonymous + 2 * GB // 10
    with_residuals = replace(CONVERTED, residuals=3 * GB)
    assert (
        footprint(with_residuals, "streamed").anonymous
        == footprint(CONVERTED, "streamed").anonymous + 3 * GB
    )
    assert footprint(with_residuals, "cut") == footprint(CONVERTED, "cut")
    results = replace(SIZES, results=5 * GB)
    assert footprint(results, "cut").anonymous == footprint(SIZES, "cut").anonymous + 5 * GB


def test_embedding_is_read_while_it_is_converted() -> None:
    large = replace(CONVERTED, embedding=WeightBytes(converted=20 * GB, stored=GB, source=40 * GB))
    assert footprint(large, "streamed") == Footprint(LIBRARIES + 40 * GB, PROGRAM + 20 * GB)


def test_first_mode_that_fits_is_chosen() -> None:
    totals = [footprint(CONVERTED, mode).total for mode in MODES]
    assert totals == sorted(totals, reverse=True)
    for mode, total in zip(MODES, totals, strict=True):
        assert choose_mode(CONVERTED, total) == mode
    assert choose_mode(CONVERTED, totals[0], ("cut", "streamed")) == "cut"
    assert choose_mode(SIZES, 10 * GB, ("cut", "streamed")) == "cut"
    assert choose_mode(SIZES, 10 * GB - 1, ("cut", "streamed")) == "streamed"
    with pytest.raises(ResourceError) as refused:
        choose_mode(CONVERTED, totals[-1] - 1)
    for words in ("(streamed)", "budget is", "dtype auto", "memory budget"):
        assert words in str(refused.value)


def test_suggested_changes_do_fit() -> None:
    # Encoders are copied to a device, all of them.
    sizes = replace(CONVERTED, n_saes=18, on_device=True)
    budget = footprint(replace(sizes, n_saes=3), "cut").total
    layers = next(line for line in suggest_changes(sizes, budget, ("cut",)) if "at most" in line)
    memory = suggest_changes(sizes, budget, ("cut",))[-1]
    assert layers == "ask for at most 3 of the 18 layers at a time"
    assert budget < footprint(replace(sizes, n_saes=4), "cut").total
    assert (
        parse_bytes(memory.removeprefix("raise the memory budget to "))
        >= footprint(sizes, "cut").total
    )
    converted = replace(CONVERTED, n_saes=1)
    assert "ask for layers up to 9" in suggest_changes(converted, 13 * GB, ("cut",))
    assert footprint(replace(converted, blocks=CONVERTED.blocks[:10]), "cut").total <= 13 * GB


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("8GiB", 8 * 2**30),
        ("500MB", 500 * 10**6),
        ("2e9", 2 * 10**9),
        ("8G", 8 * GB),
        ("1.5 gib", 3 * 2**29),
        ("1024", 1024),
        ("7kib", 7168),
        ("2t", 2 * 10**12),
    ],
)
def test_amounts_are_parsed(text: str, amount: int) -> None:
    assert parse_bytes(text) == amount


@pytest.mark.parametrize(
    "text", ["", "8X", "GiB", "-1G", "0", "8 apples", "1e99", "nan", "8GiBB", "2e9e9"]
)
def test_other_text_is_no_amount(text: str) -> None:
    with pytest.raises(ResourceError, match="8GiB, 500MB or 2e9"):
        parse_bytes(text)


def test_rates_are_bytes_per_second() -> None:
    assert parse_rate("100Mbit/s") == parse_rate("100Mbps") == parse_rate("12.5MB/s") == 12.5e6
    assert parse_rate("1MiB/s") == 2**20
    for text in ("", "100", "100M", "0Mbit/s", "fast", "100MB"):
        with pytest.raises(ResourceError, match="100Mbit/s"):
            parse_rate(text)


def test_amounts_are_shown_in_powers_of_1000() -> None:
    shown = [
        show_bytes(n) for n in (0, 917, 999_499, 999_999, 2_147_762_176, 77_319_438_336, 10**15)
    ]
    assert shown == ["0 bytes", "917 bytes", "999 kB", "1 MB", "2.15 GB", "77.3 GB", "1000 TB"]


def _machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in {
        "proc/meminfo": "MemTotal: 99 kB\nMemAvailable:    8000000 kB\n",
        **files,
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_free_memory_is_within_the_limits_of_control_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine.sys, "platform", "linux")
    assert free_memory(_machine(tmp_path / "none", {})) == 8_192_000_000
    second = {
        "proc/self/cgroup": "0::/user/job\n",
        "sys/fs/cgroup/user/memory.max": "4000000000\n",
        "sys/fs/cgroup/user/memory.current": "3000000000\n",
        "sys/fs/cgroup/user/memory.stat": "anon 1\nfile 500000000\n",
        "sys/fs/cgroup/user/job/memory.max": "max\n",
    }
    assert free_memory(_machine(tmp_path / "second", second)) == 1_500_000_000
    first = {
        "proc/self/cgroup": "9:cpu,cpuacct:/a\n4:memory:/docker/abc\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "2000000000\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "1900000000\n",
    }
    assert free_memory(_machine(tmp_path / "first", first)) == 100_000_000
    assert free_memory(tmp_path / "nothing") is None
    monkeypatch.setattr(machine.sys, "platform", "darwin")
    assert (free_memory() or 0) > 10**8


def test_disk_and_device_are_found_without_torch(tmp_path: Path) -> None:
    assert free_disk(tmp_path / "not" / "yet") == pytest.approx(free_disk(tmp_path), rel=0.1)
    assert guess_device(tmp_path) in ("cpu", "mps")
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidia0").touch()
    assert guess_device(tmp_path) in ("cuda", "mps")
