"""Finds calls that could run code of the file or folder that they open."""

import ast
from collections.abc import Iterator
from typing import Any

# Classes whose from_pretrained or from_config runs no code and takes no such argument.
OTHER_LOADERS = {"PeftModel", "SAE", "quantizers"}
OPENERS = {"from_pretrained", "from_config"}
# Callables and the argument with which they run no code of the file that they open.
SAFE_ARGUMENTS: dict[tuple[str, str], tuple[str, Any]] = {
    ("torch", "load"): ("weights_only", True),
    ("np", "load"): ("allow_pickle", False),
    ("numpy", "load"): ("allow_pickle", False),
}


def unsafe_calls(source: str) -> Iterator[str]:
    """Yield each use of an opener of transformers, torch or numpy that could run a file's code."""
    tree = ast.parse(source)
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        owner = node.value.id if isinstance(node.value, ast.Name) else ""
        call = calls.get(id(node))
        if node.attr in OPENERS and owner not in OTHER_LOADERS:
            # A bare reference, such as `build = AutoModel.from_config`, hides its call.
            if call is None or not has(call, "trust_remote_code", False):
                yield f"line {node.lineno}: {ast.unparse(node)} without trust_remote_code=False"
        elif (owner, node.attr) in SAFE_ARGUMENTS:
            name, value = SAFE_ARGUMENTS[owner, node.attr]
            if call is None or not has(call, name, value):
                yield f"line {node.lineno}: {owner}.{node.attr} without {name}={value}"


def has(call: ast.Call, name: str, value: Any) -> bool:
    return any(
        keyword.arg == name
        and isinstance(keyword.value, ast.Constant)
        and keyword.value.value is value
        for keyword in call.keywords
    )
