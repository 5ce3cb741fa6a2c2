-- From schema version 2 to 3: the span under which an event was accepted. SQLite adds such a column without touching a row.
ALTER TABLE event ADD COLUMN traceparent TEXT NOT NULL DEFAULT '';
ALTER TABLE dead_letter ADD COLUMN traceparent TEXT NOT NULL DEFAULT '';
