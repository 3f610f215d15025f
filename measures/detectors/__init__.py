"""Scores of training pairs: how suspicious each is, from embeddings or losses alone; higher is more suspicious."""
