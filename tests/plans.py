"""What a plan with pixels has, for tests: of a plan without, they fail."""

from __future__ import annotations

from preprocessor.types.plan import Grid, ItemPlan, PixelPlan, Plan


def pixels_of(plan: Plan) -> PixelPlan:
    """The pixels that are to be made."""
    assert plan.pixels is not None
    return plan.pixels


def grid_of(item: ItemPlan) -> Grid:
    """Its rows' grid of patches."""
    assert item.rows.grid is not None
    return item.rows.grid
