"""What one GPU makes of Antidote: `make gpu` (run.py), a file a part."""
