"""Every call in the tests is checked: shapes by jaxtyping, other types by beartype."""

from typing import Any

import pytest
import torch
from jaxtyping import TypeCheckError

from saescope.engine.topk import largest, largest_products
from saescope.sources.catalog import layer_of
from saescope.sources.prompts import Prompt

A_NUMBER: Any = 3


def test_wrong_shape_is_an_error() -> None:
    with pytest.raises(TypeCheckError, match="values"):
        largest(torch.zeros(3), 1)


def test_axes_of_one_name_have_one_size() -> None:
    with pytest.raises(TypeCheckError, match="bias"):
        largest_products(torch.zeros(2, 4), torch.zeros(8, 4), torch.zeros(7), 1)


def test_functions_and_dataclasses_without_arrays_are_checked_too() -> None:
    with pytest.raises(TypeCheckError):
        layer_of(A_NUMBER)
    with pytest.raises(TypeCheckError):
        Prompt(A_NUMBER, "set", text="a")
