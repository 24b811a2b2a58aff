"""Methods that cannot do without a base model, and say so in words of a recipe."""

from collections.abc import Callable, Hashable, Sequence

import torch
from mergekit.merge_methods.base import (
    BasePolicy,
    FunctionalGroupMergeMethod,
    InputContract,
    MergeMethodSpec,
    ParameterSpec,
)


class _BaseRequired(FunctionalGroupMergeMethod):
    remedy = ""

    def validate_inputs(
        self, input_ids: Sequence[Hashable], base_id: Hashable | None = None, *, group_name: str | None = None
    ) -> None:
        if base_id is None:
            raise ValueError(
                f"`{self.spec.name}` needs `base_model`, and {group_name} has none; name the model that the sub-models "
                f"were fine-tuned from{self.remedy}"
            )
        super().validate_inputs(input_ids, base_id, group_name=group_name)


def name_missing_base(remedy: str = "") -> Callable[[FunctionalGroupMergeMethod], FunctionalGroupMergeMethod]:
    """Return a decorator of methods: where there is no base model, the missing key of the recipe is named.

    Args:
        remedy: What can be done else, added to the sentence.
    """

    def named(method: FunctionalGroupMergeMethod) -> FunctionalGroupMergeMethod:
        checked = _BaseRequired(method.spec, method.implementation)
        checked.remedy = remedy
        return checked

    return named


def base_required_method(
    name: str,
    pretty_name: str,
    reference_url: str,
    parameters: Sequence[ParameterSpec],
    merge: Callable[..., torch.Tensor],
) -> FunctionalGroupMergeMethod:
    """Return a method that takes a base model and sub-models, without mergekit's decorator.

    With that, each parameter is an argument of the function, which `lambda` cannot be.

    Args:
        name: In recipes.
        pretty_name: In texts.
        reference_url: Of its paper.
        parameters: What recipes can set.
        merge: Merges the tensors of one name, given the parameters by name.
    """
    contract = InputContract(base=BasePolicy.REQUIRED, min_non_base=1)
    spec = MergeMethodSpec(
        name=name, pretty_name=pretty_name, reference_url=reference_url, contract=contract, parameters=tuple(parameters)
    )
    return name_missing_base()(FunctionalGroupMergeMethod(spec, merge))
