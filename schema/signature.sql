-- Signatures of versions. No part of an empty image: the table is made when the first version of a file is signed, so that
-- a file without signatures is what it always was, and an older reader opens it.

-- What is signed is the text of `statement`, and all that is said about a signature is read out of it: a column beside it
-- could say something else. One signature a version and key: a newer one replaces it.
CREATE TABLE signature (
  id           INTEGER PRIMARY KEY,
  version_uuid TEXT NOT NULL GENERATED ALWAYS AS (json_extract(statement, '$.version')) VIRTUAL,
  at           TEXT NOT NULL GENERATED ALWAYS AS (json_extract(statement, '$.at')) VIRTUAL,
  public_key   BLOB NOT NULL CHECK (length(public_key) = 32),
  statement    TEXT NOT NULL CHECK (length(statement) <= 65536 AND json_valid(statement)),
  signature    BLOB NOT NULL CHECK (length(signature) = 64),
  UNIQUE (version_uuid, public_key)
) STRICT;
