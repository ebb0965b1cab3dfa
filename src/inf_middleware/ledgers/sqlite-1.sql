-- The ledger in SQLite. Money is in nano units of the currency. A request's record, its posting
-- and its event are written in one transaction and never changed.

CREATE TABLE meta (
    schema_version INTEGER NOT NULL
) STRICT;

INSERT INTO meta (schema_version) VALUES (1);

-- One per admitted request, amount 0 included; the words are those of the event.
CREATE TABLE request (
    seq INTEGER PRIMARY KEY,
    request_id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    corrects TEXT,
    account TEXT NOT NULL,
    key_id TEXT,
    tier TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    model TEXT,
    response_model TEXT,
    response_id TEXT,
    input_tokens INTEGER NOT NULL CHECK (input_tokens >= 0),
    output_tokens INTEGER NOT NULL CHECK (output_tokens >= 0),
    cached_input_tokens INTEGER NOT NULL CHECK (cached_input_tokens >= 0),
    cache_write_tokens INTEGER NOT NULL CHECK (cache_write_tokens >= 0),
    reasoning_tokens INTEGER NOT NULL CHECK (reasoning_tokens >= 0),
    basis TEXT NOT NULL,
    lines TEXT NOT NULL,
    amount_nano INTEGER NOT NULL CHECK (amount_nano >= 0),
    currency TEXT NOT NULL,
    price_version TEXT,
    overdrawn_nano INTEGER NOT NULL,
    outcome TEXT NOT NULL,
    would_refuse TEXT,
    unpriced INTEGER NOT NULL,
    idempotency_key TEXT,
    started_at TEXT NOT NULL,
    settled_at TEXT NOT NULL,
    metadata TEXT NOT NULL
) STRICT;

CREATE INDEX request_of_account ON request (account, settled_at);

-- Double entry: one transfer from `debit` to `credit`, so that the two sums are always equal.
CREATE TABLE posting (
    seq INTEGER PRIMARY KEY,
    request_id TEXT NOT NULL UNIQUE REFERENCES request (request_id),
    debit TEXT NOT NULL,
    credit TEXT NOT NULL,
    amount_nano INTEGER NOT NULL CHECK (amount_nano > 0),
    currency TEXT NOT NULL
) STRICT;

CREATE INDEX posting_of_debit ON posting (debit);

-- The event of each record, in the very bytes that sinks get.
CREATE TABLE outbox (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    body BLOB NOT NULL
) STRICT;

CREATE TABLE sink_cursor (
    sink TEXT PRIMARY KEY,
    seq INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE dead_letter (
    sink TEXT NOT NULL,
    id TEXT NOT NULL,
    reason TEXT NOT NULL,
    PRIMARY KEY (sink, id)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER request_is_not_changed BEFORE UPDATE ON request
BEGIN SELECT RAISE (ABORT, 'a request record is never changed'); END;
CREATE TRIGGER request_is_not_deleted BEFORE DELETE ON request
BEGIN SELECT RAISE (ABORT, 'a request record is never deleted'); END;
CREATE TRIGGER posting_is_not_changed BEFORE UPDATE ON posting
BEGIN SELECT RAISE (ABORT, 'a posting is never changed'); END;
CREATE TRIGGER posting_is_not_deleted BEFORE DELETE ON posting
BEGIN SELECT RAISE (ABORT, 'a posting is never deleted'); END;
CREATE TRIGGER outbox_is_not_changed BEFORE UPDATE ON outbox
BEGIN SELECT RAISE (ABORT, 'an event is never changed'); END;

-- The records in the words of the event.
CREATE VIEW inf_usage AS
SELECT request_id, kind, corrects, account, key_id, tier, endpoint, model, response_model,
    response_id, input_tokens, output_tokens, cached_input_tokens, cache_write_tokens,
    reasoning_tokens, basis, lines, amount_nano, currency, price_version, overdrawn_nano, outcome,
    would_refuse, unpriced, idempotency_key, started_at, settled_at, metadata
FROM request;
