"""The parent of the sections of a spec, but for those of objectives and measures, which import nothing of the project."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A frozen part of a spec; unknown keys, NaN and infinity are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
