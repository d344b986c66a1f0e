"""A LoRA as peft stores it: the names of its modules and tensors, and its config."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from saescope.control.exports.adapter import LoraAdapter, LoraFactors
from saescope.control.exports.settings import ModelClass
from saescope.errors import SourceError, first_line
from saescope.sources.files import Files

_OTHER_TOWERS = ("vision", "visual", "audio")


@dataclass(frozen=True)
class PeftNames:
    """How peft finds what it adapts in a model of one class.

    `model_class` is that class, which the automatic class `opened_by` opens the checkpoint with.
    `prefix` is what stands before the decoder's names; the targets are ends of names.
    """

    model_class: type[nn.Module]
    opened_by: str
    prefix: str
    target_modules: list[str]
    target_parameters: list[str]


def peft_names(
    files: Files, adapter: LoraAdapter, model_class: ModelClass | None = None
) -> PeftNames:
    """Return the names in the class that is asked for; raises SourceError if there is none."""
    model, opened_by = _empty_model(files, model_class)
    all_parameters = [name for name, _ in model.named_parameters()]
    all_modules = [name for name, _ in model.named_modules()]
    prefix = _prefix(all_parameters, adapter.factors[0].port.name)
    modules, parameters = [], []
    for factors in adapter.factors:
        _refuse_unadaptable(files, factors, model.get_submodule(prefix + factors.module))
        if _by_parameter(factors, adapter):
            parameters.append(prefix + factors.port.name)
        else:
            modules.append(prefix + factors.module)
    return PeftNames(
        type(model),
        opened_by,
        prefix,
        _shortest_ends(modules, all_modules, min_parts=1),
        _shortest_ends(parameters, all_parameters, min_parts=2),
    )


def peft_tensors(adapter: LoraAdapter, names: PeftNames) -> dict[str, Tensor]:
    """Return the adapter's tensors under peft's names."""
    tensors = {}
    for factors in adapter.factors:
        module = f"base_model.model.{names.prefix}{factors.module}"
        A, B = factors.A, factors.B
        if factors.kind == "embedding":
            tensors[f"{module}.lora_embedding_A"] = A
            tensors[f"{module}.lora_embedding_B"] = B
            continue
        if factors.kind == "experts":
            # peft wants A's rows expert by expert, and B's columns direction by direction.
            n_experts = len(A)
            A = A.flatten(0, 1)
            B = B[:, :, None].expand(-1, -1, n_experts).flatten(1)
        tensors[f"{module}.lora_A.weight"] = A
        tensors[f"{module}.lora_B.weight"] = B.contiguous()
    return tensors


def peft_config(files: Files, adapter: LoraAdapter, names: PeftNames) -> dict[str, Any]:
    """Return peft's config. It leaves nothing that changes the computation to peft's defaults."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "auto_mapping": {
            "base_model_class": names.model_class.__name__,
            "parent_library": names.model_class.__module__,
        },
        "base_model_name_or_path": files.source,
        "revision": files.revision,
        "inference_mode": True,
        "r": adapter.rank,
        "lora_alpha": adapter.rank,
        "use_rslora": False,
        "use_dora": False,
        "lora_dropout": 0.0,
        "lora_bias": False,
        "bias": "none",
        "fan_in_fan_out": any(factors.kind == "conv1d" for factors in adapter.factors),
        "target_modules": names.target_modules,
        "target_parameters": names.target_parameters or None,
        "modules_to_save": None,
    }


def _empty_model(files: Files, model_class: ModelClass | None) -> tuple[nn.Module, str]:
    """Build the model that users load, without its weights; return it and what opens it."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    classes: dict[ModelClass, Any] = {  # their methods have no types
        "causal": AutoModelForCausalLM,
        "multimodal": AutoModelForImageTextToText,
    }
    kinds: tuple[ModelClass, ...] = ("causal", "multimodal")
    if model_class is not None:
        kinds = (model_class,)
    reasons = []
    for kind in kinds:
        auto = classes[kind]
        try:
            config = AutoConfig.from_pretrained(
                files.path("config.json").parent, trust_remote_code=False
            )
            with torch.device("meta"):
                return auto.from_config(config, trust_remote_code=False), auto.__name__
        except Exception as error:  # models raise their own exception types for configs
            reasons.append(f"{auto.__name__} cannot load {files.name}: {first_line(error)}")
    raise SourceError(reasons[0])


def _prefix(parameters: Sequence[str], decoder_name: str) -> str:
    """Return what stands before a decoder parameter's name in the whole model."""
    found = [n for n in parameters if n == decoder_name or n.endswith(f".{decoder_name}")]
    # Towers for images may have the same ending.
    text = [name for name in found if not any(word in name for word in _OTHER_TOWERS)]
    return (text or found or [decoder_name])[0].removesuffix(decoder_name)


def _refuse_unadaptable(files: Files, factors: LoraFactors, module: nn.Module) -> None:
    """Raise SourceError for what peft would adapt wrongly.

    It calls embeddings with token ids (OPT's positions are not), and takes stacked experts for
    (expert, out, in) unless their module says otherwise (Llama 4's does not).
    """
    why = None
    first_input = next(iter(inspect.signature(module.forward).parameters))
    if factors.kind == "embedding" and first_input not in ("input", "input_ids"):
        why = f"reads {first_input}, not token ids"
    one_tensor = factors.kind == "experts" and len(factors.port.stored) == 1
    if one_tensor and factors.port.axis == -1 and not getattr(module, "is_transposed", False):
        why = "stores its experts transposed"
    if why is not None:
        raise SourceError(
            f"peft cannot adapt {factors.module} of {files.name}, which {why}: "
            "bake the edits instead"
        )


def _by_parameter(factors: LoraFactors, adapter: LoraAdapter) -> bool:
    """Whether peft has to adapt the parameter, not the module.

    In a mixture of experts peft takes every module called down_proj for experts and skips it.
    """
    if factors.kind == "experts":
        return True
    return adapter.has_experts and factors.module.rpartition(".")[2] == "down_proj"


def _shortest_ends(targets: Sequence[str], names: Sequence[str], min_parts: int) -> list[str]:
    """Return the shortest ends of the targets' names that fit no other name.

    If there are none of up to three parts, return the targets' whole names.
    """
    for n_parts in range(min_parts, 4):
        ends = {".".join(name.split(".")[-n_parts:]) for name in targets}
        matches = {name for name in names if any(_ends_with(name, end) for end in ends)}
        if matches == set(targets):
            return sorted(ends)
    return sorted(targets)


def _ends_with(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")
