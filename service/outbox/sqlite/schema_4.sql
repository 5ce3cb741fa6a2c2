-- From schema version 3 to 4: short texts that outlive a restart.
CREATE TABLE memory (
  name TEXT PRIMARY KEY,
  text TEXT NOT NULL
) STRICT, WITHOUT ROWID;
