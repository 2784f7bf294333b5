"""The budget of a search: the most trainable prompt parameters, the classifier not counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from peft_noah.architecture import Architecture
from peft_noah.jsonfile import MAX_COUNT, check_int
from peft_noah.search_space import SearchSpace

Count = Callable[[Architecture], int]


class BudgetError(ValueError):
    """No architecture of the search space fits the budget."""


def scaled_budget(widths: Sequence[int]) -> int:
    """The paper's budget for a backbone of another size: ``0.64 M x (sum of the blocks' widths) / (768 x 12)``, rounded.

    Prompt parameters grow with width times blocks, so this keeps the share of the search space that fits; at ViT-B/16
    it is the paper's 640,000.

    Args:
        widths: of the stream in each block; no unit.
    """
    return round(640_000 * sum(widths) / (768 * 12))


def check_budget(space: SearchSpace, count: Count, budget: int) -> None:
    """Raise BudgetError if not even the smallest architecture fits ``budget``; the sentence says what it costs."""
    smallest = space.smallest()
    if (least := check_count(count, smallest)) <= budget:
        return
    nothing = (0,) * space.num_blocks
    alone = {
        name: count(Architecture({**dict.fromkeys(smallest, nothing), name: smallest[name]})) for name in smallest
    }
    raise BudgetError(
        f"no architecture fits a budget of {budget:,} parameters: the smallest in this search space has {least:,} "
        f"({' + '.join(f'{name} {parameters:,}' for name, parameters in alone.items())}). "
        "Raise the budget, or allow smaller dims or depths."
    )


def check_count(count: Count, architecture: Architecture) -> int:
    """The parameters of an architecture; a ValueError that names it where ``count`` gives no whole number."""
    return check_int(count(architecture), f"the count of {architecture}", 0, MAX_COUNT)
