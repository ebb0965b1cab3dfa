"""What an event of a stream was."""


class Seen:
    """What an event of a stream was: any of these, or-ed.

    Plain numbers, for the operators of `enum.IntFlag` would cost more than all the reading.
    """

    NOTHING = 0
    USAGE_ONLY = 1  # only usage: what a client that did not ask must not see
    END = 2  # the answer is whole with it
    RUNNING_USAGE = 4  # a running total beside other things
