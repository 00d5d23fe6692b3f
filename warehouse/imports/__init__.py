"""History from elsewhere, straight into the tables: never through the topic, whose brokers would delete what is old.

A source (`sagaz_outbox`, `files`) yields events and what is none; `days` stores them a day at a time.
"""

PREFIX = "import:"
"""How `source_topic` of every imported row begins. No topic's name may hold a colon, so none is ever taken for one."""
SAGAZ_OUTBOX = f"{PREFIX}sagaz_outbox"
"""sagaz's outbox and its archive, of whichever database. It never tells of the start of a saga."""
FILES = f"{PREFIX}files"
"""Files of events."""
