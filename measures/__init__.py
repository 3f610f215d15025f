"""Measures: pure functions from embeddings to named numbers. Imports neither data, objectives, configs nor engine."""
