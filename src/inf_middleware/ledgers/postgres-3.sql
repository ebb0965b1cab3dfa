-- Version 3: the records of an account are asked for by this name in both databases. Here an index
-- finds them: it costs a commit some bytes and not, as in SQLite, a page for each account.

SET LOCAL search_path TO inf_ledger;

CREATE VIEW request_by_account AS SELECT * FROM request;

UPDATE meta SET schema_version = 3;
