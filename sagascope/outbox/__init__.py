"""The outbox: events wait in the service's own database, part of its transactions, until a relay has sent them."""
