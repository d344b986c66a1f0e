"""What the tables of a run must hold, checked with whole-column operations.

Each check yields the rest of a sentence about its table, such as `has 3 rows, not 5`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from saescope.sources.catalog import SaeSpec
from saescope.store import columns, tables
from saescope.store.arrays import Bools, Ints
from saescope.store.masking import Magnitudes
from saescope.store.tables import LayerFeatures

_SPLITS = {None, "discovery", "holdout"}
_MOST_PEAK = 1.001  # a share that was rounded
_PROMPTS_WITHOUT_NULLS = ("id", "set", "text", "n_tokens")
_NUMBERS: Mapping[str, pa.DataType] = {
    "norm": pa.float32(),
    "border": pa.float32(),
    "error": pa.float32(),
    "peak": pa.float32(),
    "positions": pa.int32(),
}


def table_problems(
    name: str, table: pa.Table, saes: Mapping[int, SaeSpec], prompt_lengths: Ints | None
) -> Iterator[str]:
    """Yield what is wrong with the table of this file name, in a run with these SAEs.

    `prompt_lengths` are the numbers of tokens that the prompts table states. If they are None, no
    table is compared with it.
    """
    if name == tables.PROMPTS_NAME:
        yield from _prompts_problems(table)
    elif name == tables.TOKENS_NAME:
        yield from _tokens_problems(table, prompt_lengths)
    for layer, sae in saes.items():
        if name == tables.features_name(layer):
            yield from _features_problems(table, sae, prompt_lengths)
        elif name == tables.resid_name(layer):
            yield from _resids_problems(table, sae.d_model, prompt_lengths)


def _prompts_problems(table: pa.Table) -> Iterator[str]:
    """Yield what is wrong with the table of prompts."""
    problem = _schema_problem(table, tables.PROMPTS)
    if problem:
        yield problem
        return
    if not table.num_rows:
        yield "has no rows"
        return
    nulls = [name for name in _PROMPTS_WITHOUT_NULLS if table[name].null_count]
    yield from (f"has no {name} for some prompts" for name in nulls)
    if table["id"].null_count == 0 and pc.count_distinct(table["id"]).as_py() < table.num_rows:
        yield "has an id twice"
    unknown = set(pc.unique(table["split"]).to_pylist()) - _SPLITS
    if unknown:
        yield f"has the split {min(map(str, unknown))!r}, not discovery or holdout"
    if "n_tokens" not in nulls and columns.values(table["n_tokens"]).min() < 1:
        yield "has prompts without tokens"


def _tokens_problems(table: pa.Table, prompt_lengths: Ints | None) -> Iterator[str]:
    """Yield what is wrong with the table of tokens of prompts with these lengths."""
    problem = _schema_problem(table, tables.TOKENS)
    if problem:
        yield problem
        return
    nulls = [name for name in table.column_names if table[name].null_count]
    yield from (f"has no {name} for some tokens" for name in nulls)
    if nulls:
        return
    if (columns.values(table["token_id"]) < 0).any():
        yield "has a token_id below 0"
    if prompt_lengths is None:
        return
    n_tokens = int(prompt_lengths.sum(dtype=np.int64))
    if table.num_rows != n_tokens:
        yield f"has {table.num_rows} rows, the prompts have {n_tokens} tokens"
        return
    ends = np.cumsum(prompt_lengths, dtype=np.int64)
    prompt = np.repeat(np.arange(len(prompt_lengths)), prompt_lengths)
    pos = np.arange(n_tokens) - np.repeat(ends - prompt_lengths, prompt_lengths)
    if not np.array_equal(columns.values(table["prompt"]), prompt):
        yield "has tokens of another prompt: column prompt does not follow the prompts' n_tokens"
    elif not np.array_equal(columns.values(table["pos"]), pos):
        yield "has positions that do not count from 0 in each prompt"


def _features_problems(table: pa.Table, sae: SaeSpec, prompt_lengths: Ints | None) -> Iterator[str]:
    """Yield what is wrong with a layer's table of features."""
    names = tables.FEATURE_COLUMNS
    if "peak" not in table.column_names:
        names = tables.EARLIER_FEATURE_COLUMNS
    problem = _columns_problem(table, names) or _feature_types_problem(table)
    if problem:
        yield problem
        return
    if prompt_lengths is not None:
        yield from _rows_problem(table, prompt_lengths)
    yield from _magnitude_problems(tables.magnitudes_of(table))
    # Of schema 2, entries of 0 are no features: what is below 0 or no number would vanish too.
    stored = columns.values(pc.list_flatten(table["acts"]))
    is_schema_2 = pa.types.is_fixed_size_list(table["ids"].type)
    if not (stored >= 0 if is_schema_2 else stored > 0).all() or np.isinf(stored).any():
        yield "has activations that are not above 0 and finite"
    yield from _layer_problems(tables.features_of(table), sae)


def magnitudes_problems(table: pa.Table, prompt_lengths: Ints) -> Iterator[str]:
    """Yield what is wrong with the columns of a layer's table that say how large residuals are."""
    for name in table.column_names:
        problem = _number_problem(table, name)
        if problem:
            yield problem
            return
    yield from _rows_problem(table, prompt_lengths)
    yield from _magnitude_problems(tables.magnitudes_of(table))


def _rows_problem(table: pa.Table, prompt_lengths: Ints) -> Iterator[str]:
    n_tokens = int(prompt_lengths.sum(dtype=np.int64))
    if table.num_rows != n_tokens:
        yield f"has {table.num_rows} rows, the prompts have {n_tokens} tokens"


def _magnitude_problems(magnitudes: Magnitudes) -> Iterator[str]:
    norms, peaks = magnitudes
    if not _is_finite(norms) or (norms < 0).any():
        yield "has norms that are not finite"
    if peaks is not None and not ((peaks >= 0) & (peaks <= _MOST_PEAK)).all():
        yield "has peaks that are no shares of a norm"


def _resids_problems(table: pa.Table, d_model: int, prompt_lengths: Ints | None) -> Iterator[str]:
    """Yield what is wrong with a layer's table of residuals."""
    problem = _columns_problem(table, tables.RESID_COLUMNS)
    problem = problem or _resid_types_problem(table, d_model)
    if problem:
        yield problem
        return
    positions = columns.values(table["positions"])
    if (positions < 0).any():
        yield "has means over fewer than 0 positions"
    if prompt_lengths is not None and len(positions) != len(prompt_lengths):
        yield f"has {len(positions)} rows, {tables.PROMPTS_NAME} has {len(prompt_lengths)}"
    elif prompt_lengths is not None and (positions > prompt_lengths).any():
        yield "has means over more positions than a prompt has"
    for name in ("mean", "last"):
        if not _is_finite(columns.values(pc.list_flatten(table[name]))):
            yield f"has residuals that are not finite: column {name}"


def _layer_problems(features: LayerFeatures, sae: SaeSpec) -> Iterator[str]:
    if features.error is not None and not (
        _is_finite(features.error) and (features.error >= 0).all()
    ):
        yield "has reconstruction errors that are not finite"
    if np.isinf(features.next_pre_act).any():
        yield "has a border that is infinite"
    if sae.k is not None and features.counts.max(initial=0) > sae.k:
        yield f"has {features.counts.max()} features on a token, the SAE's k is {sae.k}"
    if not len(features.ids):
        return
    largest = int(features.ids.max())
    if largest >= sae.d_sae or int(features.ids.min()) < 0:
        yield f"has feature {largest}, the SAE has {sae.d_sae} (ids are 0-{sae.d_sae - 1})"
    if (np.diff(features.acts) > 0)[_follows_in_token(features)].any():
        yield "has activations that are not sorted, strongest first"
    if _has_repeated_id(features, sae.d_sae):
        yield "has an id twice in one token"


def _follows_in_token(features: LayerFeatures) -> Bools:
    """Return for each entry after the first whether it is of the same token as the one before."""
    follows = np.ones(len(features.ids) - 1, bool)
    starts = features.starts[1:-1]
    follows[starts[(starts > 0) & (starts < len(features.ids))] - 1] = False
    return follows


def _has_repeated_id(features: LayerFeatures, d_sae: int) -> bool:
    k = int(features.counts.max())
    if int(features.counts.min()) == k:  # as of most TopK SAEs
        rows: npt.NDArray[Any] = np.sort(features.ids.reshape(-1, k), axis=1)
        return bool((rows[:, 1:] == rows[:, :-1]).any())
    width = max(d_sae, int(features.ids.max()) + 1)
    keys = np.sort(features.token * np.int64(width) + features.ids)
    return bool((keys[1:] == keys[:-1]).any())


def _schema_problem(table: pa.Table, schema: pa.Schema) -> str | None:
    problem = _columns_problem(table, schema.names)
    if problem:
        return problem
    for field in schema:
        actual = table.schema.field(field.name).type
        if actual != field.type:
            return f"has {actual} in column {field.name}, not {field.type}"
    return None


def _columns_problem(table: pa.Table, names: Any) -> str | None:
    if table.column_names == list(names):
        return None
    return f"has columns {', '.join(table.column_names)}, not {', '.join(names)}"


def _number_problem(table: pa.Table, name: str) -> str | None:
    column = table[name]
    if column.type != _NUMBERS[name]:
        return f"has {column.type} in column {name}, not {_NUMBERS[name]}"
    # Errors are recorded for all tokens or for none.
    if column.null_count and not (name == "error" and column.null_count == len(column)):
        return f"has no {name} for some rows"
    return None


def _feature_types_problem(table: pa.Table) -> str | None:
    for name in [name for name in _NUMBERS if name in table.column_names]:
        problem = _number_problem(table, name)
        if problem:
            return problem
    ids, acts = table["ids"], table["acts"]
    for name, column in (("ids", ids), ("acts", acts)):
        if not (pa.types.is_large_list(column.type) or pa.types.is_fixed_size_list(column.type)):
            return f"has {column.type} in column {name}, not lists"
        if column.null_count or pc.list_flatten(column).null_count:
            return f"has no {name} for some features"
    if not pa.types.is_unsigned_integer(ids.type.value_type):
        return f"has {ids.type.value_type} in column ids, not uint16 or uint32"
    if acts.type.value_type != pa.float32():
        return f"has {acts.type.value_type} in column acts, not float"
    if not np.array_equal(
        columns.values(pc.list_value_length(ids)), columns.values(pc.list_value_length(acts))
    ):
        return "has more ids than activations on some token, or fewer"
    return None


def _resid_types_problem(table: pa.Table, d_model: int) -> str | None:
    problem = _number_problem(table, "positions")
    if problem:
        return problem
    expected = pa.list_(pa.float32(), d_model)
    for name in ("mean", "last"):
        column = table[name]
        is_list = pa.types.is_fixed_size_list(column.type)
        if not is_list or column.type.list_size != d_model:
            return f"has {column.type} in column {name}, not {expected}"
        if column.type.value_type != pa.float32():
            return f"has {column.type} in column {name}, not {expected}"
        if column.null_count or pc.list_flatten(column).null_count:
            return f"has no {name} for some prompts"
    return None


def _is_finite(values: npt.NDArray[Any]) -> bool:
    return bool(np.isfinite(values).all())
