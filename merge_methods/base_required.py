"""Methods that cannot do without a base model, and say so in words of a recipe."""

from collections.abc import Callable, Hashable, Sequence

from mergekit.merge_methods.base import FunctionalGroupMergeMethod


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
