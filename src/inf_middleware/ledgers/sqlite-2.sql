-- Version 2: accounts and their keys, balances, movements of money, holds, idempotency keys.
--
-- A movement (recharge, grant, credit, withdrawal, reversal) is a record, a posting and an event
-- like a call; its kind tells it apart. Balances are sums of postings, kept by the triggers below
-- and by nothing else.

-- Grows with every change that a look-up may see: what was looked up before is looked up again.
ALTER TABLE meta ADD COLUMN accounts_version INTEGER NOT NULL DEFAULT 0;

CREATE TABLE account (
    id TEXT NOT NULL PRIMARY KEY CHECK (id <> ''),
    tier TEXT, -- pinned; else the level follows from the recharges
    suspended INTEGER NOT NULL DEFAULT 0 CHECK (suspended IN (0, 1)),
    credit_limit_nano INTEGER NOT NULL DEFAULT 0 CHECK (credit_limit_nano >= 0),
    metadata TEXT NOT NULL DEFAULT '{}',
    created_at TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- Of a key only its SHA-256 is kept; `key_id` is the start of it, as in records and events.
CREATE TABLE api_key (
    sha256 TEXT NOT NULL PRIMARY KEY,
    key_id TEXT NOT NULL UNIQUE,
    account TEXT NOT NULL REFERENCES account (id),
    label TEXT,
    created_at TEXT NOT NULL,
    revoked_at TEXT
) STRICT, WITHOUT ROWID;

CREATE INDEX api_key_of_account ON api_key (account);

-- What an account has, holds excluded; below 0 it owes. `recharged_nano` decides the level.
CREATE TABLE balance (
    account TEXT NOT NULL,
    currency TEXT NOT NULL,
    balance_nano INTEGER NOT NULL DEFAULT 0,
    recharged_nano INTEGER NOT NULL DEFAULT 0,
    held_nano INTEGER NOT NULL DEFAULT 0 CHECK (held_nano >= 0),
    PRIMARY KEY (account, currency)
) STRICT, WITHOUT ROWID;

-- A movement happens once per reference of its kind; `fingerprint` tells what it was.
CREATE TABLE reference (
    kind TEXT NOT NULL,
    reference TEXT NOT NULL,
    request_id TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    PRIMARY KEY (kind, reference)
) STRICT, WITHOUT ROWID;

-- Grants that expire: spent before all else, the earliest to expire first.
CREATE TABLE lot (
    request_id TEXT NOT NULL PRIMARY KEY,
    account TEXT NOT NULL,
    currency TEXT NOT NULL,
    left_nano INTEGER NOT NULL CHECK (left_nano >= 0),
    expires_at TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- Money held for running calls (prepaid). `checkpoint` is the event of what the call had used when
-- it was written: the bill, should the process that `owner` names be gone.
CREATE TABLE hold (
    request_id TEXT NOT NULL PRIMARY KEY,
    account TEXT NOT NULL,
    currency TEXT NOT NULL,
    amount_nano INTEGER NOT NULL CHECK (amount_nano > 0),
    credit_limit_nano INTEGER NOT NULL CHECK (credit_limit_nano >= 0),
    owner TEXT NOT NULL,
    checkpoint BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX hold_of_owner ON hold (owner);

-- Processes that hold, and when each was last known to live, by the clock of the host.
CREATE TABLE process (
    id TEXT NOT NULL PRIMARY KEY,
    beat_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

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
) STRICT, WITHOUT ROWID;

CREATE INDEX idempotency_of_request ON idempotency (request_id);
CREATE INDEX idempotency_by_age ON idempotency (claimed_at);
CREATE INDEX idempotency_running ON idempotency (owner) WHERE state = 'running';

CREATE INDEX lot_open ON lot (account, expires_at) WHERE left_nano > 0;

CREATE INDEX request_corrected ON request (corrects) WHERE corrects IS NOT NULL;
CREATE INDEX request_settled ON request (settled_at);
-- An account's postings are found by its records: each index in the order of accounts has every
-- commit write as many pages as it has accounts.
DROP INDEX posting_of_debit;

CREATE TRIGGER posting_takes AFTER INSERT ON posting WHEN NEW.debit GLOB 'account:*'
BEGIN
    INSERT INTO balance (account, currency, balance_nano, recharged_nano)
    VALUES (
        substr(NEW.debit, 9), NEW.currency, -NEW.amount_nano,
        iif(NEW.credit = 'cash:recharge', -NEW.amount_nano, 0)
    )
    ON CONFLICT (account, currency) DO UPDATE SET
        balance_nano = balance_nano + excluded.balance_nano,
        recharged_nano = recharged_nano + excluded.recharged_nano;
END;

CREATE TRIGGER posting_gives AFTER INSERT ON posting WHEN NEW.credit GLOB 'account:*'
BEGIN
    INSERT INTO balance (account, currency, balance_nano, recharged_nano)
    VALUES (
        substr(NEW.credit, 9), NEW.currency, NEW.amount_nano,
        iif(NEW.debit = 'cash:recharge', NEW.amount_nano, 0)
    )
    ON CONFLICT (account, currency) DO UPDATE SET
        balance_nano = balance_nano + excluded.balance_nano,
        recharged_nano = recharged_nano + excluded.recharged_nano;
END;

INSERT INTO balance (account, currency, balance_nano)
SELECT substr(debit, 9), currency, -sum(amount_nano) FROM posting
WHERE debit GLOB 'account:*' GROUP BY 1, 2;

-- What the relay keeps beside its cursors.

-- For sinks with a dedupe window: deliveries up to `seq` were begun at this time, and may have
-- reached the far end.
CREATE TABLE sink_attempt (
    sink TEXT PRIMARY KEY,
    seq INTEGER NOT NULL,
    began_at TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- What operators want sent once more: events from `next_seq` to `last_seq` whose time is not
-- before `since` and before `until`.
CREATE TABLE replay (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    sink TEXT NOT NULL,
    next_seq INTEGER NOT NULL,
    last_seq INTEGER NOT NULL,
    since TEXT,
    until TEXT
) STRICT;

-- Accounts with their money, one row per currency.
CREATE VIEW inf_account AS
SELECT balance.account, account.tier, account.suspended, account.credit_limit_nano,
    balance.currency, balance.balance_nano, balance.held_nano, balance.recharged_nano
FROM balance LEFT JOIN account ON account.id = balance.account;

UPDATE meta SET schema_version = 2;
