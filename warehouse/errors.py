"""What the warehouse raises where it can't do what it was asked to: one line with the cure, no fault of the program."""


class WarehouseError(RuntimeError):
    """The root of them."""
