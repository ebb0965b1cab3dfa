-- Version 4: a posting and an event have the place of their record, and not its id once more with
-- an index of its own; records are found by their time as they are by their account. Of what a
-- commit wrote, more than a quarter were the ends of these indices.

DROP TRIGGER request_is_not_changed;

-- Events keep their places, by which sinks and replays go on: records take those of their events.
-- A record without one gets out of the way.
CREATE TEMP TABLE moved AS
SELECT request.seq AS old, outbox.seq AS new
FROM request JOIN outbox ON outbox.id = request.request_id WHERE outbox.seq <> request.seq
UNION ALL
SELECT request.seq, request.seq + (SELECT max(seq) FROM outbox)
    + (SELECT max(seq) FROM request)
FROM request JOIN outbox AS other ON other.seq = request.seq
WHERE request.request_id NOT IN (SELECT id FROM outbox);

-- By way of places that nothing has: each is free before it is taken.
UPDATE request SET seq = -moved.new FROM temp.moved WHERE request.seq = moved.old;
UPDATE request SET seq = -seq WHERE seq < 0;

CREATE TRIGGER request_is_not_changed BEFORE UPDATE ON request
BEGIN SELECT RAISE (ABORT, 'a request record is never changed'); END;

DELETE FROM account_request WHERE EXISTS (SELECT 1 FROM temp.moved);
UPDATE meta SET sorted_seq = 0 WHERE EXISTS (SELECT 1 FROM temp.moved);
DROP TABLE temp.moved;

INSERT INTO account_request (account, settled_at, seq)
SELECT account, settled_at, seq FROM request WHERE seq > (SELECT sorted_seq FROM meta)
ORDER BY account, settled_at, seq;

-- Brought up to date with `account_request`.
CREATE TABLE time_request (
    settled_at TEXT NOT NULL,
    seq INTEGER NOT NULL,
    PRIMARY KEY (settled_at, seq)
) STRICT, WITHOUT ROWID;

INSERT INTO time_request (settled_at, seq)
SELECT settled_at, seq FROM request ORDER BY settled_at, seq;

UPDATE meta SET sorted_seq = (SELECT coalesce(max(seq), 0) FROM request);

DROP INDEX request_settled;

-- Double entry: one transfer from `debit` to `credit`, so that the two sums are always equal.
CREATE TABLE transfer (
    seq INTEGER PRIMARY KEY, -- that of its record
    debit TEXT NOT NULL,
    credit TEXT NOT NULL,
    amount_nano INTEGER NOT NULL CHECK (amount_nano > 0),
    currency TEXT NOT NULL
) STRICT;

-- Without a record only where somebody has changed the file: `ledger reconcile` goes on telling it.
INSERT INTO transfer (seq, debit, credit, amount_nano, currency)
SELECT coalesce(request.seq, -posting.seq), debit, credit, posting.amount_nano, posting.currency
FROM posting LEFT JOIN request ON request.request_id = posting.request_id ORDER BY posting.seq;

DROP TABLE posting;

-- The event of each record, in the very bytes that sinks get.
CREATE TABLE event (
    seq INTEGER PRIMARY KEY, -- that of its record
    body BLOB NOT NULL
) STRICT;

INSERT INTO event (seq, body) SELECT seq, body FROM outbox ORDER BY seq;

DROP TABLE outbox;

CREATE TRIGGER transfer_is_not_changed BEFORE UPDATE ON transfer
BEGIN SELECT RAISE (ABORT, 'a posting is never changed'); END;
CREATE TRIGGER transfer_is_not_deleted BEFORE DELETE ON transfer
BEGIN SELECT RAISE (ABORT, 'a posting is never deleted'); END;
CREATE TRIGGER event_is_not_changed BEFORE UPDATE ON event
BEGIN SELECT RAISE (ABORT, 'an event is never changed'); END;

CREATE TRIGGER transfer_takes AFTER INSERT ON transfer WHEN NEW.debit GLOB 'account:*'
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

CREATE TRIGGER transfer_gives AFTER INSERT ON transfer WHEN NEW.credit GLOB 'account:*'
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

-- Postings and events with the ids of their records; null where there is none.
CREATE VIEW posting AS
SELECT transfer.seq, request.request_id, debit, credit, transfer.amount_nano, transfer.currency
FROM transfer LEFT JOIN request ON request.seq = transfer.seq;

CREATE VIEW outbox AS
SELECT event.seq, request.request_id AS id, body
FROM event LEFT JOIN request ON request.seq = event.seq;

-- The records, for whoever asks for those of some time: the rest, not yet sorted, is short.
CREATE VIEW request_by_time AS
SELECT time_request.seq, request_id, kind, corrects, account, key_id, tier, endpoint, model,
    response_model, response_id, input_tokens, output_tokens, cached_input_tokens,
    cache_write_tokens, reasoning_tokens, basis, lines, amount_nano, currency, price_version,
    overdrawn_nano, outcome, would_refuse, unpriced, idempotency_key, started_at,
    time_request.settled_at, metadata
FROM time_request CROSS JOIN request ON request.seq = time_request.seq
UNION ALL
SELECT seq, request_id, kind, corrects, account, key_id, tier, endpoint, model, response_model,
    response_id, input_tokens, output_tokens, cached_input_tokens, cache_write_tokens,
    reasoning_tokens, basis, lines, amount_nano, currency, price_version, overdrawn_nano, outcome,
    would_refuse, unpriced, idempotency_key, started_at, settled_at, metadata
FROM request NOT INDEXED WHERE seq > (SELECT sorted_seq FROM meta); -- by their places, that is

UPDATE meta SET schema_version = 4;
