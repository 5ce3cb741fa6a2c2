-- From schema version 1 to 2: when an event was put or replayed stands in one column, queued_at.
CREATE TABLE event_2 (
  id INTEGER PRIMARY KEY,
  message_id TEXT NOT NULL,
  accepted_at INTEGER NOT NULL,
  queued_at INTEGER NOT NULL,
  attempts INTEGER NOT NULL DEFAULT 0,
  first_attempt_at INTEGER,
  due_at INTEGER,
  payload BLOB NOT NULL
) STRICT;
INSERT INTO event_2
  SELECT id, message_id, accepted_at, coalesce(replayed_at, accepted_at), attempts, first_attempt_at, due_at, payload
  FROM event;
DROP TABLE event;
ALTER TABLE event_2 RENAME TO event;
CREATE INDEX event_due ON event (due_at) WHERE due_at IS NOT NULL;
