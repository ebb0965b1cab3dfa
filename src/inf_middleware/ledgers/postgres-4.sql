-- Version 4: settlements come as one array of a type of their own, and are written by a function, in
-- one round trip. An array per column cost whoever sent them more than all else of a settlement.

SET LOCAL search_path TO inf_ledger;

-- The record, both sides of its posting, null where it costs nothing, and its event.
CREATE TYPE settlement AS (
    request_id TEXT,
    kind TEXT,
    corrects TEXT,
    account TEXT,
    key_id TEXT,
    tier TEXT,
    endpoint TEXT,
    model TEXT,
    response_model TEXT,
    response_id TEXT,
    input_tokens BIGINT,
    output_tokens BIGINT,
    cached_input_tokens BIGINT,
    cache_write_tokens BIGINT,
    reasoning_tokens BIGINT,
    basis TEXT,
    currency TEXT,
    price_version TEXT,
    outcome TEXT,
    would_refuse TEXT,
    idempotency_key TEXT,
    started_at TEXT,
    settled_at TEXT,
    amount_nano BIGINT,
    overdrawn_nano BIGINT,
    unpriced BIGINT,
    lines TEXT,
    metadata TEXT,
    debit TEXT,
    credit TEXT,
    body BYTEA
);

-- Write settlements. The first insertion decides which are new; only those get a posting and an
-- event, whatever a repeated settlement says now. Places are in the order of what is given: no join
-- changes it, and none has a plan that was made for tables as small as they were then.
CREATE FUNCTION record_settlements(given settlement[]) RETURNS VOID LANGUAGE plpgsql AS $$
DECLARE
    fresh TEXT[];
BEGIN
    WITH recorded AS (
        INSERT INTO request (
            request_id, kind, corrects, account, key_id, tier, endpoint, model,
            response_model, response_id, input_tokens, output_tokens,
            cached_input_tokens, cache_write_tokens, reasoning_tokens, basis, currency,
            price_version, outcome, would_refuse, idempotency_key, started_at,
            settled_at, amount_nano, overdrawn_nano, unpriced, lines, metadata
        )
        SELECT request_id, kind, corrects, account, key_id, tier, endpoint, model,
            response_model, response_id, input_tokens, output_tokens,
            cached_input_tokens, cache_write_tokens, reasoning_tokens, basis, currency,
            price_version, outcome, would_refuse, idempotency_key, started_at,
            settled_at, amount_nano, overdrawn_nano, unpriced, lines, metadata
        FROM unnest(given)
        ON CONFLICT (request_id) DO NOTHING RETURNING request_id
    )
    SELECT coalesce(array_agg(request_id), '{}') INTO fresh FROM recorded;
    IF cardinality(fresh) < cardinality(given) THEN
        given := ARRAY(SELECT one FROM unnest(given) AS one WHERE one.request_id = ANY (fresh));
    END IF;
    INSERT INTO posting (request_id, debit, credit, amount_nano, currency)
    SELECT request_id, debit, credit, amount_nano, currency
    FROM unnest(given) WHERE debit IS NOT NULL;
    INSERT INTO outbox (id, body) SELECT request_id, body FROM unnest(given);
END $$;

-- Write settlements of calls, as the one who writes, where nothing is held and no grant expires; say
-- whether they were written. Its caller takes more steps where they were not.
CREATE FUNCTION settle(writer_lock BIGINT, given settlement[]) RETURNS BOOLEAN
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(writer_lock);
    IF EXISTS (SELECT FROM hold) OR EXISTS (SELECT FROM lot WHERE left_nano > 0) THEN
        RETURN FALSE;
    END IF;
    PERFORM record_settlements(given);
    RETURN TRUE;
END $$;

UPDATE meta SET schema_version = 4;
