"""The errors that the models plan; events tell them by the name of their type."""


class ModelledError(Exception):
    """An error the model planned: no fault of the workload."""


class InvalidOrderError(ModelledError):
    """The order can't be fulfilled as written."""


class OutOfStockError(ModelledError):
    """The warehouse has fewer than were ordered."""


class CarrierUnavailableError(ModelledError):
    """No carrier takes the parcel."""


class FraudSuspectedError(ModelledError):
    """The payment looks like fraud."""


class PaymentDeclinedError(ModelledError):
    """The card's issuer said no."""


class RefundRejectedError(ModelledError):
    """The money could not be given back."""


class NotificationError(ModelledError):
    """The other side could not be told."""


class LedgerConflictError(ModelledError):
    """The ledger moved on meanwhile."""


class NoSeatsLeftError(ModelledError):
    """The flight is full."""


class BookingPartnerError(ModelledError):
    """A partner's system answered with an error."""


class CancellationRefusedError(ModelledError):
    """A partner does not take the booking back."""


class DocumentRejectedError(ModelledError):
    """A document is missing or unreadable."""


class CreditBureauError(ModelledError):
    """The credit bureau gave no report."""


class LoanDeniedError(ModelledError):
    """The applicant gets no loan."""


class RiskLimitExceededError(ModelledError):
    """The trade is larger than the account may risk."""


class OrderRejectedError(ModelledError):
    """The exchange refused the order."""


class SettlementError(ModelledError):
    """The counterparty does not agree with the trade."""


class DeviceOfflineError(ModelledError):
    """The device does not answer."""


class FirmwareChecksumError(ModelledError):
    """What the device received is not what was sent."""


class StateConflictError(ModelledError):
    """Someone else changed what was to be changed or undone."""
