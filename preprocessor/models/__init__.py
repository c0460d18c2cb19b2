"""Models: what each family does with grids, placeholders and positions, and how a model is loaded."""
