-- Version 5: the records of some time are asked for by this name in both databases. Here an index
-- finds them.

SET LOCAL search_path TO inf_ledger;

CREATE VIEW request_by_time AS SELECT * FROM request;

UPDATE meta SET schema_version = 5;
