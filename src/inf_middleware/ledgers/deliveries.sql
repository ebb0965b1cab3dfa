-- What the relay keeps beside its cursors.

-- For sinks with a dedupe window: deliveries up to `seq` were begun at this time, and may have
-- reached the far end.
CREATE TABLE IF NOT EXISTS sink_attempt (
    sink TEXT PRIMARY KEY,
    seq INTEGER NOT NULL,
    began_at TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- What operators want sent once more: events from `next_seq` to `last_seq` whose time is not
-- before `since` and before `until`.
CREATE TABLE IF NOT EXISTS replay (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    sink TEXT NOT NULL,
    next_seq INTEGER NOT NULL,
    last_seq INTEGER NOT NULL,
    since TEXT,
    until TEXT
) STRICT;
