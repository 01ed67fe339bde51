"""The checks that every test runs under."""

import pytest
import torch
from jaxtyping import TypeCheckError

from internal_policy import files
from internal_policy.measure.metrics import entropy


def test_a_tensor_of_a_wrong_shape_is_refused():
    with pytest.raises(TypeCheckError):
        entropy(torch.tensor(1.0))


def test_an_argument_of_a_wrong_type_is_refused():
    with pytest.raises(TypeCheckError):
        files.fingerprint(5)  # pyright: ignore[reportArgumentType] on purpose
