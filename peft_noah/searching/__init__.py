"""Which architecture is best: evolution, its result, and what makes scores cheap."""
