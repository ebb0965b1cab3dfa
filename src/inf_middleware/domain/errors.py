"""What can go wrong, by whose fault.

MiddlewareError
├── ConfigError            the operator's: an option that cannot hold; says what would be right
├── InvalidRequest         the caller's: a body that the path cannot mean
├── BookingRefused         a movement of money, or a change of an account, that cannot be
│   ├── NotFound           what it is about is not in the ledger
│   └── AlreadyExists      what it would make is, or its reference stands for something else
└── Unavailable            a part of ours cannot do its work now
    ├── AccountsUnavailable
    ├── LimitsUnavailable
    └── LedgerUnavailable
        ├── LedgerMissing  there is none yet
        └── BillKept       it has not answered in time, and the bill is kept until it does

None of these is ever raised into the model app: they become answers (design: "What the caller
sees") or stop the server at construction.
"""


class MiddlewareError(Exception):
    """The base of all errors of this library."""


class ConfigError(MiddlewareError, ValueError):
    """An option, table or file that cannot hold; the message says what would be right."""


class InvalidRequest(MiddlewareError):  # noqa: N818 - a fact about a request, not a failure of ours
    """A request body that its path cannot mean.

    `status` and `code` are those of the answer.
    """

    def __init__(
        self, message: str, *, status: int = 400, code: str = "invalid_request_body"
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code


class BookingRefused(MiddlewareError, ValueError):  # noqa: N818 - the ledger works, and says no
    """What was asked of the ledger cannot be; nothing was changed, the message says why."""


class NotFound(BookingRefused):
    """What it is about is not in the ledger."""


class AlreadyExists(BookingRefused):
    """What it would make is in the ledger already, or its reference stands for something else."""


class Unavailable(MiddlewareError):  # noqa: N818 - names the state, not the exception
    """A part of ours cannot do its work now; the cause is chained."""


class AccountsUnavailable(Unavailable):
    """The look-up of an account failed."""


class LimitsUnavailable(Unavailable):
    """The store of the limits failed."""


class LedgerUnavailable(Unavailable):
    """The ledger could not make a settlement durable."""


class LedgerMissing(LedgerUnavailable):
    """There is no ledger yet where one was to be read."""


class BillKept(LedgerUnavailable):
    """The ledger has not answered in time, and the bill is durable on this host."""
