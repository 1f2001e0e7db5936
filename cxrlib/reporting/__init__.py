"""A report -> figures, a model card, a page."""
