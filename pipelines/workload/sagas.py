"""The sagas of the workload, as data: which there are, how long their steps take, what fails and how often."""

from __future__ import annotations

from pipelines.workload.errors import (
    BookingPartnerError,
    CancellationRefusedError,
    CarrierUnavailableError,
    CreditBureauError,
    DeviceOfflineError,
    DocumentRejectedError,
    FirmwareChecksumError,
    FraudSuspectedError,
    InvalidOrderError,
    LedgerConflictError,
    LoanDeniedError,
    NoSeatsLeftError,
    NotificationError,
    OrderRejectedError,
    OutOfStockError,
    PaymentDeclinedError,
    RefundRejectedError,
    RiskLimitExceededError,
    SettlementError,
    StateConflictError,
)
from pipelines.workload.model import CompensationModel, Failure, SagaModel, StepModel

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
