"""That there is no room for more now. Knows nothing of what for."""


class BusyError(RuntimeError):
    """There is no room for more now; later there will be."""
