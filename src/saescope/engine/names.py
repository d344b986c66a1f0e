"""Which stored tensors make each parameter of a model, as transformers' own loading decides it.

transformers renames tensors while it loads, and joins or splits some of them (its conversion
mapping): experts that are stored one by one become one tensor, the prefixes of multimodal classes
change. Its rules are applied to names alone here, so that single tensors can be read later.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Size, Tensor

from saescope.errors import SourceError, first_line


@dataclass(frozen=True)
class Source:
    """Where a parameter comes from.

    Attributes:
        names: The stored tensors, in transformers' order.
        patterns: The rule's pattern that each name matched; empty without a converter.
        converter: The rule of transformers that makes parameters of them; None: as stored.
        first: The parameter that names the conversion; one conversion may make several.
    """

    names: tuple[str, ...]
    patterns: tuple[str, ...] = ()
    converter: Any = None
    first: str = ""

    @property
    def operations(self) -> list[str]:
        """Class names of the conversion's steps."""
        steps = self.converter.operations if self.converter is not None else ()
        return [type(step).__name__ for step in steps]

    @property
    def is_stack(self) -> bool:
        """Whether the tensors are a mixture's experts, one by one, with rows to be joined."""
        if self.operations == ["MergeModulelist"]:
            return bool(self.converter.operations[0].dim == 0)
        if self.operations == ["MergeModulelist", "Concatenate"]:
            merge, concatenate = self.converter.operations
            return (merge.dim, concatenate.dim) == (0, 1)
        return False

    def stored_axis(self, axis: int, ndim: int) -> int | None:
        """Return which axis of the stored tensors is this axis of the parameter; None if unclear.

        Axes count from the end: -1 is the last one.
        """
        steps = self.converter.operations if self.converter is not None else ()
        for step in reversed(steps):
            kind = type(step).__name__
            if kind == "MergeModulelist" and step.dim == 0:
                ndim -= 1
            elif kind == "Transpose":
                swapped = (_from_end(step.dim0, ndim), _from_end(step.dim1, ndim))
                if axis in swapped:
                    axis = sum(swapped) - axis
            elif kind in ("Chunk", "Split", "Concatenate", "Interleave"):
                if _from_end(step.dim, ndim) == axis:
                    return None
            else:
                return None
        return axis

    def stack_order(self) -> Iterator[str]:
        """Yield the names of a stack expert by expert, each with its parts in order."""
        by_pattern: dict[str, list[str]] = {p: [] for p in self.converter.source_patterns}
        for name, pattern in zip(self.names, self.patterns, strict=True):
            by_pattern[pattern].append(name)
        for parts in zip(*by_pattern.values(), strict=False):
            yield from parts

    def missing_from_stack(self, n_experts: int) -> list[str]:
        """Return the names of a stack's experts that are not stored."""
        missing = []
        for pattern in self.converter.source_patterns:
            pairs = zip(self.names, self.patterns, strict=True)
            stored = [name for name, matched in pairs if matched == pattern]
            if not stored:
                missing.append(pattern)
                continue
            expected = (_with_last_number(stored[0], n) for n in range(n_experts))
            missing += [name for name in expected if name not in stored]
        return missing

    def convert(self, tensors: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
        """Return the parameters that this conversion makes of its stored tensors, by name."""
        conversion = deepcopy(self.converter)
        for name, pattern in zip(self.names, self.patterns, strict=True):
            conversion.add_tensor(self.first, name, pattern, tensors[name])
        try:
            converted = conversion.convert(self.first, model=model, config=model.config)
        except Exception as error:  # operations fail in their own ways on unfitting tensors
            raise SourceError(
                f"{self.names[0]} cannot be converted: {first_line(error)}"
            ) from error
        return {
            name: value[0] if isinstance(value, list) else value
            for name, value in converted.items()
        }


class Assignment(NamedTuple):
    """The source of each parameter, and the stored tensors that fill none: new name by name."""

    sources: dict[str, Source]
    unused: dict[str, str]


def assign_tensors(model: Any, stored: Collection[str], quantizer: Any = None) -> Assignment:
    """Match a checkpoint's tensor names with the parameters and buffers of a stock model.

    `quantizer` is transformers' own of a quantised checkpoint.
    """
    rules = _Rules.of(model, quantizer)
    sources: dict[str, Source] = {}
    unused: dict[str, str] = {}
    for name in sorted(stored, key=_natural_order):
        new_name, pattern, converter = rules.rename(name)
        if new_name not in rules.parameters:
            unused[name] = new_name
        elif converter is None:
            sources.setdefault(new_name, Source((name,)))
        else:
            for target in rules.targets(new_name, converter):
                before = sources.get(target, Source((), (), converter, new_name))
                sources[target] = Source(
                    (*before.names, name), (*before.patterns, pattern), converter, before.first
                )
    return Assignment(sources, _without_ignored(model, unused))


@dataclass(frozen=True)
class _Rules:
    """transformers' conversion mapping of a model, and the model's parameters and buffers."""

    renamings: list[Any]
    converters: list[Any]
    base_prefix: str
    parameters: Mapping[str, Size]

    @classmethod
    def of(cls, model: Any, quantizer: Any) -> "_Rules":
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter

        rules = get_model_conversion_mapping(model, hf_quantizer=quantizer)
        converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
        renamings = [rule for rule in rules if not isinstance(rule, WeightConverter)]
        shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        return cls(renamings, converters, model.base_model_prefix, shapes)

    def rename(self, name: str) -> tuple[str, str, Any]:
        """Return the parameter of a stored tensor, and the pattern and converter that apply."""
        new_name = name
        for renaming in self.renamings:
            new_name, _ = renaming.rename_source_key(new_name)
        for converter in self.converters:
            converted, pattern = converter.rename_source_key(new_name)
            if pattern is not None:
                return self._with_base_prefix(converted), pattern, converter
        new_name = self._with_base_prefix(new_name)
        if new_name not in self.parameters:
            # Stored under its final name, which a rule took for another one.
            own_name = self._with_base_prefix(name)
            new_name = own_name if own_name in self.parameters else new_name
        return new_name, "", None

    def targets(self, first: str, converter: Any) -> list[str]:
        """Return the parameters that a conversion makes; `first` is the first of them."""
        patterns = converter.target_patterns
        return [first.replace(patterns[0], pattern, 1) for pattern in patterns]

    def _with_base_prefix(self, name: str) -> str:
        """Add or remove the base model's prefix if only the other name is a parameter."""
        prefix = f"{self.base_prefix}."
        if name.startswith(prefix) and name.removeprefix(prefix) in self.parameters:
            return name.removeprefix(prefix)
        if prefix + name in self.parameters:
            return prefix + name
        return name


def _from_end(dim: int, ndim: int) -> int:
    return dim if dim < 0 else dim - ndim


def _with_last_number(name: str, number: int) -> str:
    """Replace the last number between dots, which is an expert's."""
    parts = name.split(".")
    last = max(place for place, part in enumerate(parts) if part.isdigit())
    return ".".join([*parts[:last], str(number), *parts[last + 1 :]])


def _natural_order(name: str) -> list[tuple[int, int, str, int]]:
    """Sort numbers in names as numbers: experts are joined in this order."""
    key = []
    for part in name.split("."):
        word = part.rstrip("0123456789")
        number = int(part.removeprefix(word) or -1)
        key.append((0, number, "", 0) if not word else (1, 0, word, number))
    return key


def _without_ignored(model: Any, unused: Mapping[str, str]) -> dict[str, str]:
    """Leave out tensors that the architecture is known to store in vain."""
    patterns = [*(model._keys_to_ignore_on_load_unexpected or ()), *_OLD_BUFFERS]
    ignored = re.compile("|".join(f"({pattern})" for pattern in patterns))
    return {name: new_name for name, new_name in unused.items() if not ignored.search(new_name)}


# Buffers that modules once stored and now compute.
_OLD_BUFFERS = (
    r"rotary_emb\.inv_freq$",
    r"(^|\.)position_ids$",
    r"\.attn(ention)?\.(bias|masked_bias)$",
)
