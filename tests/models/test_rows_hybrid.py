"""What is special about hybrids and state-space models: layers of several kinds, caches, and refused types."""

import pytest
from transformers import AutoConfig

from internal_policy.errors import InputError
from internal_policy.models.families import family_of
from internal_policy.models.rows import FAMILIES
from internal_policy.models.rows.refused import REFUSED

# refusals


def test_a_refused_type_has_no_row():
    assert not REFUSED.keys() & {row.model_type or name for name, row in FAMILIES.items()}


@pytest.mark.parametrize("model_type", REFUSED)
def test_a_model_without_one_stream_is_refused_with_the_reason(model_type):
    with pytest.raises(InputError) as error:
        family_of(AutoConfig.for_model(model_type))
    assert str(error.value) == f"{model_type} isn't supported: {REFUSED[model_type]}."
