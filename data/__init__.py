"""Tar streams in, batches out. Imports neither objectives, measures, configs nor engine."""
