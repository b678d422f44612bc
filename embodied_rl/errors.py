"""The one kind of error that the command line shows without a traceback."""


class UserError(ValueError):
    """Something that the user can mend; the message says where, what was given, what is allowed, and what to do."""
