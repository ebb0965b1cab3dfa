-- Version 3: the records of an account are found by a table that is brought up to date for some
-- thousands of records at once. An index in the order of accounts had every commit write one page
-- per account in it: more than all else together, and most of what a settlement cost.

CREATE TABLE account_request (
    account TEXT NOT NULL,
    settled_at TEXT NOT NULL,
    seq INTEGER NOT NULL,
    PRIMARY KEY (account, settled_at, seq)
) STRICT, WITHOUT ROWID;

INSERT INTO account_request (account, settled_at, seq)
SELECT account, settled_at, seq FROM request ORDER BY account, settled_at, seq;

-- Records up to this one are in `account_request`.
ALTER TABLE meta ADD COLUMN sorted_seq INTEGER NOT NULL DEFAULT 0;
UPDATE meta SET sorted_seq = (SELECT coalesce(max(seq), 0) FROM request);

DROP INDEX request_of_account;

-- The records, for whoever asks for those of one account: the rest, not yet sorted, is short.
CREATE VIEW request_by_account AS
SELECT account_request.seq, request_id, kind, corrects, account_request.account, key_id, tier,
    endpoint, model, response_model, response_id, input_tokens, output_tokens,
    cached_input_tokens, cache_write_tokens, reasoning_tokens, basis, lines, amount_nano, currency,
    price_version, overdrawn_nano, outcome, would_refuse, unpriced, idempotency_key, started_at,
    account_request.settled_at, metadata
FROM account_request CROSS JOIN request ON request.seq = account_request.seq
UNION ALL
SELECT seq, request_id, kind, corrects, account, key_id, tier, endpoint, model, response_model,
    response_id, input_tokens, output_tokens, cached_input_tokens, cache_write_tokens,
    reasoning_tokens, basis, lines, amount_nano, currency, price_version, overdrawn_nano, outcome,
    would_refuse, unpriced, idempotency_key, started_at, settled_at, metadata
FROM request NOT INDEXED WHERE seq > (SELECT sorted_seq FROM meta); -- by their places, that is

UPDATE meta SET schema_version = 3;
