-- The SQLite outbox, schema version 5. Times are milliseconds since the epoch.

-- Events that wait to be delivered. due_at is NULL until the first nak.
CREATE TABLE event (
  id INTEGER PRIMARY KEY,            -- rises in the order of acceptance; no two that wait ever share one, but after
                                     -- a restart an event may get the id of one that is gone
  message_id TEXT NOT NULL,
  accepted_at INTEGER NOT NULL,
  queued_at INTEGER NOT NULL,        -- when it was put or, if later, replayed
  attempts INTEGER NOT NULL DEFAULT 0,
  first_attempt_at INTEGER,
  due_at INTEGER,
  payload BLOB NOT NULL,             -- the serialised Event; behind the columns that are read without it
  traceparent TEXT NOT NULL DEFAULT ''  -- of the accepting call's span; is read with the payload alone
) STRICT;
CREATE INDEX event_due ON event (due_at) WHERE due_at IS NOT NULL;

-- The duplicate window: the message_ids of accepted events, as 16-byte BLAKE2b digests (half the size of a UUID's
-- text, and the same size whatever callers send).
CREATE TABLE seen (
  id INTEGER PRIMARY KEY,            -- the event's id
  digest BLOB NOT NULL UNIQUE,
  at INTEGER NOT NULL
) STRICT;

-- Events that were given up.
CREATE TABLE dead_letter (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  message_id TEXT NOT NULL,
  accepted_at INTEGER NOT NULL,
  event_type TEXT NOT NULL,
  user_id TEXT NOT NULL,
  anonymous_id TEXT NOT NULL,
  reason TEXT NOT NULL,
  status INTEGER,
  detail TEXT NOT NULL,
  attempts INTEGER NOT NULL,
  first_attempt_at INTEGER NOT NULL,
  last_attempt_at INTEGER NOT NULL,
  payload BLOB NOT NULL,
  traceparent TEXT NOT NULL DEFAULT ''
) STRICT;

CREATE INDEX dead_letter_message_id ON dead_letter (message_id);

-- What would be slow to count. One row.
CREATE TABLE counter (
  events INTEGER NOT NULL,
  bytes INTEGER NOT NULL,
  seen INTEGER NOT NULL,
  dead_letters INTEGER NOT NULL
) STRICT;
INSERT INTO counter VALUES (0, 0, 0, 0);

-- Short texts that outlive a restart, such as the setup with which Pointillist took events.
CREATE TABLE memory (
  name TEXT PRIMARY KEY,
  text TEXT NOT NULL
) STRICT, WITHOUT ROWID;
