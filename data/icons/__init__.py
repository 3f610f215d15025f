"""A world of real pictures: what people drew and named, from open icon sets. `python -m data.icons FOLDER` makes it."""
