"""The registry of triggers: one file and one entry each."""

from data.triggers.patch import Patch

Trigger = Patch  # becomes a union, discriminated on `kind`, with the second trigger
