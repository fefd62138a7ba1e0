"""Machinery that every kind of training shares: recipes, trainer, callbacks, processes, data."""
