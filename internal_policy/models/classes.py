"""Choose the class of transformers that a model is built with."""

from typing import Any

from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM

from internal_policy.models.family import Family


def auto_class(family: Family | None) -> Any:
    """The class with `from_pretrained` and `from_config` for models of a family; None is a family without a row.

    A model that also reads images is loaded whole, so that training it doesn't lose what reads them.
    """
    return AutoModelForMultimodalLM if family is not None and family.nested else AutoModelForCausalLM
