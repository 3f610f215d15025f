"""The one exception for what a user can put right."""


class UserError(ValueError):
    """What was given, what was expected and what to do, in one sentence; ends the program with exit code 2.

    `alone` says that one rank may have met it without the others, so that this rank must speak for itself; `again` that the
    same command goes on, once what happened outside is over or put right.
    """

    def __init__(self, words: object, alone: bool = False, again: bool = False) -> None:
        super().__init__(words)
        self.alone, self.again = alone, again

    @property
    def fault(self) -> str:
        """What is wrong, without what to do, which stands behind the first semicolon."""
        return str(self).split(";")[0]


class Diverged(UserError):
    """A training whose numbers are not finite any more: no fault of the machine, but what came of what it was asked."""


class Missing(UserError):
    """Something that a spec names is not on this machine; it may be on the one that is to carry the spec out."""
