-- The ledger in PostgreSQL: the same tables as in SQLite. Money is in nano units of the currency.
-- A request's record, its posting and its event are written in one transaction and never changed.

CREATE SCHEMA IF NOT EXISTS inf_ledger;
SET LOCAL search_path TO inf_ledger;

CREATE TABLE meta (
    schema_version BIGINT NOT NULL,
    accounts_version BIGINT NOT NULL DEFAULT 0
);

INSERT INTO meta (schema_version) VALUES (2);

-- One per admitted request, amount 0 included; the words are those of the event.
CREATE TABLE request (
    seq BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
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
    input_tokens BIGINT NOT NULL CHECK (input_tokens >= 0),
    output_tokens BIGINT NOT NULL CHECK (output_tokens >= 0),
    cached_input_tokens BIGINT NOT NULL CHECK (cached_input_tokens >= 0),
    cache_write_tokens BIGINT NOT NULL CHECK (cache_write_tokens >= 0),
    reasoning_tokens BIGINT NOT NULL CHECK (reasoning_tokens >= 0),
    basis TEXT NOT NULL,
    lines TEXT NOT NULL,
    amount_nano BIGINT NOT NULL CHECK (amount_nano >= 0),
    currency TEXT NOT NULL,
    price_version TEXT,
    overdrawn_nano BIGINT NOT NULL,
    outcome TEXT NOT NULL,
    would_refuse TEXT,
    unpriced BIGINT NOT NULL,
    idempotency_key TEXT,
    started_at TEXT NOT NULL,
    settled_at TEXT NOT NULL,
    metadata TEXT NOT NULL
);

CREATE INDEX request_of_account ON request (account, settled_at);

-- Double entry: one transfer from `debit` to `credit`, so that the two sums are always equal.
CREATE TABLE posting (
    seq BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    request_id TEXT NOT NULL UNIQUE, -- of a record, by the one statement that writes both
    debit TEXT NOT NULL,
    credit TEXT NOT NULL,
    amount_nano BIGINT NOT NULL CHECK (amount_nano > 0),
    currency TEXT NOT NULL
);

-- The event of each record, in the very bytes that sinks get.
CREATE TABLE outbox (
    seq BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    body BYTEA NOT NULL
);

CREATE TABLE sink_cursor (
    sink TEXT PRIMARY KEY,
    seq BIGINT NOT NULL
);

CREATE TABLE dead_letter (
    sink TEXT NOT NULL,
    id TEXT NOT NULL,
    reason TEXT NOT NULL,
    PRIMARY KEY (sink, id)
);

-- The records in the words of the event.
CREATE VIEW inf_usage AS
SELECT request_id, kind, corrects, account, key_id, tier, endpoint, model, response_model,
    response_id, input_tokens, output_tokens, cached_input_tokens, cache_write_tokens,
    reasoning_tokens, basis, lines, amount_nano, currency, price_version, overdrawn_nano, outcome,
    would_refuse, unpriced, idempotency_key, started_at, settled_at, metadata
FROM request;

-- Accounts and their keys, balances, movements of money, holds, idempotency keys.
CREATE TABLE account (
    id TEXT NOT NULL PRIMARY KEY CHECK (id <> ''),
    tier TEXT, -- pinned; else the level follows from the recharges
    suspended BIGINT NOT NULL DEFAULT 0 CHECK (suspended IN (0, 1)),
    credit_limit_nano BIGINT NOT NULL DEFAULT 0 CHECK (credit_limit_nano >= 0),
    metadata TEXT NOT NULL DEFAULT '{}',
    created_at TEXT NOT NULL
);

-- Of a key only its SHA-256 is kept; `key_id` is the start of it, as in records and events.
CREATE TABLE api_key (
    sha256 TEXT NOT NULL PRIMARY KEY,
    key_id TEXT NOT NULL UNIQUE,
    account TEXT NOT NULL REFERENCES account (id),
    label TEXT,
    created_at TEXT NOT NULL,
    revoked_at TEXT
);

CREATE INDEX api_key_of_account ON api_key (account);

-- What an account has, holds excluded; below 0 it owes. `recharged_nano` decides the level.
CREATE TABLE balance (
    account TEXT NOT NULL,
    currency TEXT NOT NULL,
    balance_nano BIGINT NOT NULL DEFAULT 0,
    recharged_nano BIGINT NOT NULL DEFAULT 0,
    held_nano BIGINT NOT NULL DEFAULT 0 CHECK (held_nano >= 0),
    PRIMARY KEY (account, currency)
);

-- A movement happens once per reference of its kind; `fingerprint` tells what it was.
CREATE TABLE reference (
    kind TEXT NOT NULL,
    reference TEXT NOT NULL,
    request_id TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    PRIMARY KEY (kind, reference)
);

-- Grants that expire: spent before all else, the earliest to expire first.
CREATE TABLE lot (
    request_id TEXT NOT NULL PRIMARY KEY,
    account TEXT NOT NULL,
    currency TEXT NOT NULL,
    left_nano BIGINT NOT NULL CHECK (left_nano >= 0),
    expires_at TEXT NOT NULL
);

-- Money held for running calls (prepaid). `checkpoint` is the event of what the call had used when
-- it was written: the bill, should the process that `owner` names be gone.
CREATE TABLE hold (
    request_id TEXT NOT NULL PRIMARY KEY,
    account TEXT NOT NULL,
    currency TEXT NOT NULL,
    amount_nano BIGINT NOT NULL CHECK (amount_nano > 0),
    credit_limit_nano BIGINT NOT NULL CHECK (credit_limit_nano >= 0),
    owner TEXT NOT NULL,
    checkpoint BYTEA NOT NULL
);

CREATE INDEX hold_of_owner ON hold (owner);

-- Processes that hold, and when each was last known to live, by the clock of the host.
CREATE TABLE process (
    id TEXT NOT NULL PRIMARY KEY,
    beat_ms BIGINT NOT NULL
);

-- Keys that clients give their requests: each stands for one answer that is delivered and billed.
-- `state` is running, complete, or partial: what was not delivered whole may run again.
CREATE TABLE idempotency (
    account TEXT NOT NULL,
    idempotency_key TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    request_id TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('running', 'complete', 'partial')),
    owner TEXT NOT NULL,
    claimed_at TEXT NOT NULL,
    PRIMARY KEY (account, idempotency_key)
);

CREATE INDEX idempotency_of_request ON idempotency (request_id);
CREATE INDEX idempotency_by_age ON idempotency (claimed_at);
CREATE INDEX idempotency_running ON idempotency (owner) WHERE state = 'running';

CREATE INDEX lot_open ON lot (account, expires_at) WHERE left_nano > 0;

CREATE INDEX request_corrected ON request (corrects) WHERE corrects IS NOT NULL;
CREATE INDEX request_settled ON request (settled_at);

-- What the relay keeps beside its cursors.

-- For sinks with a dedupe window: deliveries up to `seq` were begun at this time, and may have
-- reached the far end.
CREATE TABLE sink_attempt (
    sink TEXT PRIMARY KEY,
    seq BIGINT NOT NULL,
    began_at TEXT NOT NULL
);

-- What operators want sent once more: events from `next_seq` to `last_seq` whose time is not
-- before `since` and before `until`.
CREATE TABLE replay (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    sink TEXT NOT NULL,
    next_seq BIGINT NOT NULL,
    last_seq BIGINT NOT NULL,
    since TEXT,
    until TEXT
);

-- Accounts with their money, one row per currency.
CREATE VIEW inf_account AS
SELECT balance.account, account.tier, account.suspended, account.credit_limit_nano,
    balance.currency, balance.balance_nano, balance.held_nano, balance.recharged_nano
FROM balance LEFT JOIN account ON account.id = balance.account;

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a row of % is never changed', TG_TABLE_NAME
        USING ERRCODE = 'integrity_constraint_violation';
END $$;

CREATE TRIGGER request_stays BEFORE UPDATE OR DELETE ON request
FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER posting_stays BEFORE UPDATE OR DELETE ON posting
FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER outbox_stays BEFORE UPDATE ON outbox
FOR EACH ROW EXECUTE FUNCTION refuse_change();

-- Balances are sums of postings, kept by this trigger and by nothing else: once per statement, so
-- that an account with many postings in it is written once; in the order of accounts.
CREATE FUNCTION move_balance() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO balance (account, currency, balance_nano, recharged_nano)
    SELECT account, currency, CAST(sum(moved) AS BIGINT), CAST(sum(recharged) AS BIGINT)
    FROM (
        SELECT substr(debit, 9) AS account, currency, -amount_nano AS moved,
            CASE WHEN credit = 'cash:recharge' THEN -amount_nano ELSE 0 END AS recharged
        FROM posted WHERE debit LIKE 'account:%'
        UNION ALL
        SELECT substr(credit, 9), currency, amount_nano,
            CASE WHEN debit = 'cash:recharge' THEN amount_nano ELSE 0 END
        FROM posted WHERE credit LIKE 'account:%'
    ) AS side
    GROUP BY account, currency ORDER BY account, currency
    ON CONFLICT (account, currency) DO UPDATE SET
        balance_nano = balance.balance_nano + excluded.balance_nano,
        recharged_nano = balance.recharged_nano + excluded.recharged_nano;
    RETURN NULL;
END $$;

CREATE TRIGGER posting_moves_balance AFTER INSERT ON posting
REFERENCING NEW TABLE AS posted FOR EACH STATEMENT EXECUTE FUNCTION move_balance();
