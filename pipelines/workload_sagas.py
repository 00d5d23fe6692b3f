"""The sagas of the workload, as data: which there are, how long their steps take, what fails and how often.

`SAGAS` is the one table. Everything about saga number n is drawn from it by `draw_plan`, before the saga runs. Times are
modelled seconds: a run may let them pass faster, see `pipelines.workload`.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_LONGEST_SHARE_OF_TIMEOUT = 0.8
REGIONS = ("eu-central", "eu-west", "us-east", "us-west", "ap-south")


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


@dataclass(frozen=True, slots=True)
class Failure:
    """One way to fail; in `message`, `{ref}` becomes a number of four digits, drawn per saga."""

    probability: float
    error: type[ModelledError]
    message: str


@dataclass(frozen=True, slots=True)
class CompensationModel:
    """How a step is undone: log-normal around `median_seconds`."""

    name: str
    median_seconds: float
    sigma: float = 0.4
    failure: Failure | None = None

    @property
    def failure_rate(self) -> float:
        """The probability that undoing fails where it is begun."""
        return self.failure.probability if self.failure else 0.0


@dataclass(frozen=True, slots=True)
class StepModel:
    """One step: a duration, log-normal around `median_seconds`, and at most one of its failures, or a timeout.

    No duration but a timeout's is longer than 0.8 of `timeout_seconds`, so that no jitter of a timer makes a timeout
    that was not planned.

    Raises:
        ValueError: the numbers can't hold together.
    """

    name: str
    median_seconds: float
    sigma: float = 0.4
    after: tuple[str, ...] = ()
    failures: tuple[Failure, ...] = ()
    timeout_seconds: float = 60.0
    timeout_probability: float = 0.0
    compensation: CompensationModel | None = None
    pivot: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.failure_rate < 1.0:
            msg = f"step {self.name!r}: its failures' probabilities sum to {self.failure_rate}, allowed: [0, 1)"
            raise ValueError(msg)
        if not 0.0 < self.median_seconds <= self.longest_seconds:
            msg = f"step {self.name!r}: median_seconds={self.median_seconds}, allowed: (0, {self.longest_seconds:g}]"
            raise ValueError(msg)

    @property
    def failure_rate(self) -> float:
        """The probability that the step fails where it is run, timeouts included."""
        return sum((failure.probability for failure in self.failures), self.timeout_probability)

    @property
    def longest_seconds(self) -> float:
        """The longest duration of a step that does not time out."""
        return _LONGEST_SHARE_OF_TIMEOUT * self.timeout_seconds

    def quantile(self, q: float) -> float:
        """The duration in modelled seconds that a share `q`, within (0, 1), of all runs stays below; failed ones count."""
        in_time = q / (1.0 - self.timeout_probability)
        if in_time >= 1.0:
            return self.timeout_seconds
        return min(self.median_seconds * math.exp(self.sigma * NormalDist().inv_cdf(in_time)), self.longest_seconds)


@dataclass(frozen=True, slots=True)
class SagaModel:
    """A saga type; `weight` is its part of the mix, relative to the others' weights.

    Raises:
        ValueError: a step's name is taken, or it comes after a step that is not named before it.
    """

    name: str
    service: str
    weight: float
    entity: str
    """What the saga is about: its context holds `<entity>_id`."""
    steps: tuple[StepModel, ...]

    def __post_init__(self) -> None:
        known: set[str] = set()
        for step in self.steps:
            if step.name in known or not known.issuperset(step.after):
                msg = f"saga {self.name!r}: step {step.name!r} must have a name of its own and name only earlier steps"
                raise ValueError(msg)
            known.add(step.name)

    @property
    def failure_rate(self) -> float:
        """The probability that the saga does not complete: some step fails."""
        return 1.0 - math.prod(1.0 - step.failure_rate for step in self.steps)


ORDER_PROCESSING = SagaModel(
    name="order-processing",
    service="order-service",
    weight=30,
    entity="order",
    steps=(
        StepModel(
            "validate_order",
            0.3,
            failures=(Failure(0.004, InvalidOrderError, "order {ref}: the delivery address has no postal code"),),
        ),
        StepModel(
            "reserve_inventory",
            0.9,
            after=("validate_order",),
            failures=(Failure(0.014, OutOfStockError, "SKU-{ref}: 3 ordered, 1 left in warehouse FRA-2"),),
            compensation=CompensationModel(
                "release_inventory",
                0.5,
                failure=Failure(0.04, StateConflictError, "reservation {ref} was already picked"),
            ),
        ),
        StepModel(
            "authorize_payment",
            1.2,
            sigma=0.5,
            after=("validate_order",),
            failures=(Failure(0.013, PaymentDeclinedError, "card ending in {ref} declined: insufficient funds"),),
            timeout_seconds=15.0,
            timeout_probability=0.003,
            compensation=CompensationModel("void_authorization", 0.6),
        ),
        StepModel(
            "create_shipment",
            1.8,
            after=("reserve_inventory", "authorize_payment"),
            failures=(Failure(0.012, CarrierUnavailableError, "no carrier serves postal code {ref}0 before Monday"),),
            compensation=CompensationModel("cancel_shipment", 1.0),
        ),
        StepModel(
            "send_confirmation",
            0.25,
            after=("create_shipment",),
            failures=(Failure(0.005, NotificationError, "550 mailbox of customer {ref} is unavailable"),),
        ),
    ),
)

PAYMENT_PROCESSING = SagaModel(
    name="payment-processing",
    service="payment-service",
    weight=25,
    entity="payment",
    steps=(
        StepModel(
            "check_fraud",
            0.5,
            failures=(Failure(0.010, FraudSuspectedError, "velocity rule 17: 9 payments of card {ref} in 60 s"),),
        ),
        StepModel(
            "authorize_card",
            1.1,
            sigma=0.5,
            after=("check_fraud",),
            failures=(Failure(0.015, PaymentDeclinedError, "card ending in {ref} declined: do not honour"),),
            timeout_seconds=12.0,
            timeout_probability=0.005,
            compensation=CompensationModel("void_authorization", 0.7),
        ),
        StepModel(
            "capture_funds",
            0.9,
            after=("authorize_card",),
            failures=(Failure(0.006, PaymentDeclinedError, "authorization {ref} expired before its capture"),),
            pivot=True,
        ),
        StepModel(
            "post_to_ledger",
            0.4,
            after=("capture_funds",),
            failures=(Failure(0.008, LedgerConflictError, "account {ref}: version 42 expected, found 43"),),
            compensation=CompensationModel("reverse_posting", 0.4),
        ),
        StepModel(
            "notify_merchant",
            0.3,
            sigma=0.6,
            after=("capture_funds",),
            failures=(Failure(0.010, NotificationError, "webhook of merchant {ref} answered 503"),),
        ),
    ),
)

TRAVEL_BOOKING = SagaModel(
    name="travel-booking",
    service="travel-service",
    weight=14,
    entity="trip",
    steps=(
        StepModel("quote_itinerary", 0.8),
        StepModel(
            "reserve_flight",
            2.4,
            sigma=0.5,
            after=("quote_itinerary",),
            failures=(Failure(0.018, NoSeatsLeftError, "flight SG{ref}: no seats left in class Y"),),
            compensation=CompensationModel("release_flight", 1.4),
        ),
        StepModel(
            "reserve_hotel",
            1.7,
            after=("quote_itinerary",),
            failures=(Failure(0.010, BookingPartnerError, "hotel {ref}: rate no longer offered (partner code 409)"),),
            compensation=CompensationModel(
                "cancel_hotel",
                1.1,
                failure=Failure(0.08, CancellationRefusedError, "hotel {ref}: the rate is non-refundable"),
            ),
        ),
        StepModel(
            "reserve_car",
            1.2,
            after=("quote_itinerary",),
            failures=(Failure(0.008, BookingPartnerError, "station {ref}: no car of group C"),),
            compensation=CompensationModel("cancel_car", 0.8),
        ),
        StepModel(
            "charge_traveller",
            1.3,
            after=("reserve_flight", "reserve_hotel", "reserve_car"),
            failures=(Failure(0.015, PaymentDeclinedError, "card ending in {ref} declined: limit exceeded"),),
            compensation=CompensationModel(
                "refund_traveller",
                1.6,
                failure=Failure(0.05, RefundRejectedError, "refund {ref}: the account was closed"),
            ),
        ),
        StepModel(
            "issue_tickets",
            1.5,
            after=("charge_traveller",),
            failures=(Failure(0.005, BookingPartnerError, "ticketing of SG{ref} answered 502"),),
            timeout_seconds=20.0,
            timeout_probability=0.004,
        ),
    ),
)

LOAN_ORIGINATION = SagaModel(
    name="loan-origination",
    service="loan-service",
    weight=9,
    entity="application",
    steps=(
        StepModel(
            "collect_documents",
            1.0,
            failures=(Failure(0.012, DocumentRejectedError, "document {ref}: page 2 of the payslip is unreadable"),),
            compensation=CompensationModel("discard_documents", 0.4),
        ),
        StepModel(
            "pull_credit_report",
            2.0,
            sigma=0.5,
            after=("collect_documents",),
            failures=(Failure(0.008, CreditBureauError, "bureau: the file of applicant {ref} is frozen"),),
            timeout_seconds=20.0,
            timeout_probability=0.006,
        ),
        StepModel("verify_income", 1.6, after=("collect_documents",)),
        StepModel(
            "underwrite",
            14.0,  # the slow one
            sigma=0.35,
            after=("pull_credit_report", "verify_income"),
            failures=(Failure(0.015, LoanDeniedError, "debt-to-income of applicant {ref} is 51 %, allowed: 43 %"),),
            timeout_seconds=90.0,
            compensation=CompensationModel("withdraw_offer", 0.9),
        ),
        StepModel(
            "reserve_funds",
            0.7,
            after=("underwrite",),
            failures=(Failure(0.006, LedgerConflictError, "pool {ref}: reserved meanwhile"),),
            compensation=CompensationModel("release_funds", 0.5),
        ),
        StepModel("disburse_loan", 1.1, after=("reserve_funds",), pivot=True),
        StepModel(
            "register_lien",
            1.9,
            after=("disburse_loan",),
            failures=(Failure(0.018, StateConflictError, "register: parcel {ref} has a lien already"),),
        ),
    ),
)

TRADE_EXECUTION = SagaModel(
    name="trade-execution",
    service="trading-service",
    weight=12,
    entity="trade",
    steps=(
        StepModel(
            "check_risk_limits",
            0.2,
            failures=(Failure(0.009, RiskLimitExceededError, "account {ref}: exposure 1.2 M, allowed: 1 M"),),
        ),
        StepModel(
            "block_margin",
            0.4,
            after=("check_risk_limits",),
            compensation=CompensationModel("release_margin", 0.3),
        ),
        StepModel(
            "execute_on_exchange",
            0.6,
            sigma=0.7,
            after=("block_margin",),
            failures=(Failure(0.016, OrderRejectedError, "order {ref}: price outside of the collar"),),
            pivot=True,
        ),
        StepModel(
            "book_position",
            0.35,
            after=("execute_on_exchange",),
            failures=(Failure(0.004, LedgerConflictError, "position {ref}: version 7 expected, found 8"),),
            compensation=CompensationModel("unbook_position", 0.3),
        ),
        StepModel(
            "confirm_settlement",
            2.2,
            after=("execute_on_exchange",),
            failures=(Failure(0.014, SettlementError, "counterparty {ref} does not know the trade"),),
        ),
        StepModel("report_to_regulator", 0.5, after=("book_position", "confirm_settlement")),
    ),
)

IOT_DEVICE_ORCHESTRATION = SagaModel(
    name="iot-device-orchestration",
    service="fleet-service",
    weight=10,
    entity="rollout",
    steps=(
        StepModel(
            "drain_traffic",
            0.8,
            failures=(Failure(0.006, StateConflictError, "gateway {ref} is drained by another rollout"),),
            compensation=CompensationModel("restore_traffic", 0.6),
        ),
        StepModel(
            "snapshot_config",
            0.6,
            after=("drain_traffic",),
            compensation=CompensationModel("drop_snapshot", 0.3),
        ),
        StepModel(
            "push_firmware",  # the flaky one
            2.6,
            sigma=0.5,
            after=("snapshot_config",),
            failures=(
                Failure(0.12, DeviceOfflineError, "device {ref}: no heartbeat for 30 s"),
                Failure(0.03, FirmwareChecksumError, "device {ref}: block 118 differs from the image"),
            ),
            timeout_seconds=30.0,
            timeout_probability=0.03,
            compensation=CompensationModel(
                "restore_firmware",
                2.0,
                failure=Failure(0.10, DeviceOfflineError, "device {ref}: went away while its firmware was restored"),
            ),
        ),
        StepModel(
            "stage_config",
            0.9,
            after=("snapshot_config",),
            failures=(Failure(0.008, StateConflictError, "config of device {ref} was edited by hand"),),
            compensation=CompensationModel(
                "revert_config",
                0.7,
                failure=Failure(0.08, DeviceOfflineError, "device {ref}: no route while its config was reverted"),
            ),
        ),
        StepModel(
            "activate",
            1.4,
            after=("push_firmware", "stage_config"),
            failures=(Failure(0.015, DeviceOfflineError, "device {ref}: did not come back from its restart"),),
        ),
    ),
)

SAGAS = (
    ORDER_PROCESSING,
    PAYMENT_PROCESSING,
    TRAVEL_BOOKING,
    LOAN_ORIGINATION,
    TRADE_EXECUTION,
    IOT_DEVICE_ORCHESTRATION,
)
"""The workload."""


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of one step or compensation: how long it takes, in modelled seconds, and how it fails, if it does."""

    seconds: float
    error_type: type[Exception] | None = None
    message: str = ""

    @property
    def error(self) -> Exception | None:
        """A new error, or None: it succeeds. A timeout has no message, as sagaz's own have none."""
        if self.error_type is None:
            return None
        return self.error_type(self.message) if self.message else self.error_type()


@dataclass(frozen=True, slots=True)
class Plan:
    """All there is to know about one saga before it runs; of its steps also those it may never come to."""

    saga_id: str
    model: SagaModel
    context: Mapping[str, object]
    steps: Mapping[str, Fate]
    compensations: Mapping[str, Fate]


def draw_plan(seed: int, number: int, *, models: tuple[SagaModel, ...] = SAGAS, prefix: str = "") -> Plan:
    """What saga `number` of the workload with this seed will be: the same at any time, in any process.

    Its id is `<prefix><saga_name>-<seed>-<number>`, the number with at least six digits.
    """
    rng = random.Random(f"{seed}:{number}")  # noqa: S311 - a model of the world, no secret
    model = rng.choices(models, [model.weight for model in models])[0]
    ref = f"{rng.randrange(10_000):04d}"
    steps = {step.name: _fate(step, ref, rng) for step in model.steps}
    compensations = {
        step.name: _undoing(step.compensation, ref, rng) for step in model.steps if step.compensation is not None
    }
    context = {
        f"{model.entity}_id": f"{model.entity}-{number:06d}",
        "customer_id": f"customer-{ref}",
        "amount_cents": rng.randrange(500, 500_000),
        "region": rng.choice(REGIONS),
    }
    return Plan(f"{prefix}{model.name}-{seed}-{number:06d}", model, context, steps, compensations)


def _fate(step: StepModel, ref: str, rng: random.Random) -> Fate:
    seconds = min(rng.lognormvariate(math.log(step.median_seconds), step.sigma), step.longest_seconds)
    luck = rng.random() - step.timeout_probability
    if luck < 0.0:
        return Fate(step.timeout_seconds, TimeoutError)
    for failure in step.failures:
        luck -= failure.probability
        if luck < 0.0:
            return Fate(seconds, failure.error, failure.message.format(ref=ref))
    return Fate(seconds)


def _undoing(compensation: CompensationModel, ref: str, rng: random.Random) -> Fate:
    seconds = rng.lognormvariate(math.log(compensation.median_seconds), compensation.sigma)
    failure, luck = compensation.failure, rng.random()
    if failure and luck < failure.probability:
        return Fate(seconds, failure.error, failure.message.format(ref=ref))
    return Fate(seconds)
