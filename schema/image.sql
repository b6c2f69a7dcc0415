-- The streams of a volume image, each a table. FORMAT.md says what every column means; this file says why each
-- table and index is shaped as it is. Ranges are inclusive on both ends and count clusters of the medium
-- (control.bytes_per_cluster) unless a column says bytes.

-- What a reader must know before it trusts anything else: `oldest_reader` and who wrote the file.
CREATE TABLE format (
  name  TEXT PRIMARY KEY,
  value ANY NOT NULL
) STRICT, WITHOUT ROWID;

-- Names of what this file uses beyond format version 1. A reader that does not know a required one refuses by name.
CREATE TABLE feature (
  name     TEXT PRIMARY KEY,
  required INTEGER NOT NULL CHECK (required IN (0, 1))
) STRICT, WITHOUT ROWID;

-- Control stream: one row a version; without it nothing is interpreted.
CREATE TABLE control (
  version             INTEGER PRIMARY KEY CHECK (version > 0),
  uuid                TEXT NOT NULL UNIQUE,
  parent_uuid         TEXT,
  parent_name         TEXT,
  label               TEXT,
  state               TEXT NOT NULL CHECK (state IN ('open', 'sealed')),
  created_at          TEXT NOT NULL,
  medium_bytes        INTEGER NOT NULL CHECK (medium_bytes >= 0),
  bytes_per_cluster   INTEGER NOT NULL CHECK (bytes_per_cluster BETWEEN 512 AND 2097152),
  bytes_per_sector    INTEGER NOT NULL CHECK (bytes_per_sector BETWEEN 512 AND 65536),
  cylinders           INTEGER,
  tracks_per_cylinder INTEGER,
  sectors_per_track   INTEGER,
  partition_scheme    TEXT,
  disk_id             TEXT,
  chunk_bytes         INTEGER NOT NULL,
  compression         TEXT NOT NULL,
  encryption          TEXT NOT NULL,
  stored_bytes        INTEGER NOT NULL,
  source              TEXT
) STRICT;

-- Control stream, continued: one row a volume on the medium. A bare volume is number 0 at offset 0.
CREATE TABLE volume (
  version             INTEGER NOT NULL,
  number              INTEGER NOT NULL,
  offset_clusters     INTEGER NOT NULL CHECK (offset_clusters >= 0),
  length_clusters     INTEGER NOT NULL CHECK (length_clusters >= 0),
  length_bytes        INTEGER NOT NULL CHECK (length_bytes >= 0),
  hidden_sectors      INTEGER,
  partition_number    INTEGER,
  partition_type      TEXT,
  partition_name      TEXT,
  partition_uuid      TEXT,
  file_system         TEXT,
  format_version      TEXT,
  label               TEXT,
  serial              TEXT,
  bytes_per_sector    INTEGER,
  bytes_per_cluster   INTEGER,
  total_clusters      INTEGER,
  clusters_per_record INTEGER,
  os_name             TEXT,
  os_version          TEXT,
  os_update           TEXT,
  dirty               INTEGER CHECK (dirty IN (0, 1)),
  hibernated          INTEGER CHECK (hibernated IN (0, 1)),
  captured_as         TEXT NOT NULL CHECK (captured_as IN ('files', 'blocks', 'raw')),
  raw_reason          TEXT,
  PRIMARY KEY (version, number)
) STRICT, WITHOUT ROWID;

-- Data stream: one row per distinct content. The digest is unique: that is the deduplication, and how a content is
-- found when its bytes are held by an ancestor or a segment that has not arrived (bytes NULL).
CREATE TABLE data (
  id           INTEGER PRIMARY KEY CHECK (id > 0),
  digest       BLOB NOT NULL UNIQUE CHECK (length(digest) = 32),
  length       INTEGER NOT NULL CHECK (length BETWEEN 1 AND 8388608),
  stored_bytes INTEGER NOT NULL CHECK (stored_bytes BETWEEN 1 AND 8388608),
  flags        INTEGER NOT NULL,
  bytes        BLOB
) STRICT;

-- Cluster map stream. Keyed by place: a read is one seek and a walk forward.
CREATE TABLE cluster_map (
  version       INTEGER NOT NULL,
  start_cluster INTEGER NOT NULL CHECK (start_cluster >= 0),
  end_cluster   INTEGER NOT NULL,
  data          INTEGER,
  data_offset   INTEGER NOT NULL CHECK (data_offset >= 0),
  flags         INTEGER NOT NULL,
  PRIMARY KEY (version, start_cluster),
  CHECK (end_cluster >= start_cluster)
) STRICT, WITHOUT ROWID;

-- "Which clusters, and so which files, does this content back": asked by verify, and by all that removes data.
CREATE INDEX cluster_map_by_data ON cluster_map (data);

-- Bitmap stream: the allocated runs; what lies between them is free.
CREATE TABLE bitmap (
  version       INTEGER NOT NULL,
  start_cluster INTEGER NOT NULL CHECK (start_cluster >= 0),
  end_cluster   INTEGER NOT NULL,
  PRIMARY KEY (version, start_cluster),
  CHECK (end_cluster >= start_cluster)
) STRICT, WITHOUT ROWID;

-- Files by path: the key holds the path once and keeps a directory's files together. There is deliberately no
-- second index here: it would hold every path again, and the joins that need one build it in memory in a blink.
CREATE TABLE file (
  version     INTEGER NOT NULL,
  volume      INTEGER NOT NULL,
  path        TEXT NOT NULL,
  kind        TEXT,
  bytes       INTEGER,
  modified_at TEXT,
  record      INTEGER,
  stream      TEXT,
  attributes  INTEGER,
  digest      BLOB,
  deleted     INTEGER NOT NULL CHECK (deleted IN (0, 1)),
  PRIMARY KEY (version, volume, path)
) STRICT, WITHOUT ROWID;

-- Where each stream of a file lies, by the file's record and stream.
CREATE TABLE extent (
  version       INTEGER NOT NULL,
  volume        INTEGER NOT NULL,
  record        INTEGER NOT NULL,
  stream        TEXT NOT NULL,
  file_offset   INTEGER NOT NULL CHECK (file_offset >= 0),
  start_cluster INTEGER NOT NULL CHECK (start_cluster >= 0),
  clusters      INTEGER NOT NULL CHECK (clusters > 0),
  PRIMARY KEY (version, volume, record, stream, file_offset)
) STRICT, WITHOUT ROWID;

-- "Which file owns cluster N": one look-up.
CREATE INDEX extent_by_cluster ON extent (version, start_cluster);

-- Audit trail stream: append-only, each row's hash covers the row before it.
CREATE TABLE audit (
  id            INTEGER PRIMARY KEY,
  version       INTEGER,
  at            TEXT NOT NULL,
  user          TEXT NOT NULL,
  host          TEXT NOT NULL,
  tool          TEXT NOT NULL,
  action        TEXT NOT NULL,
  path          TEXT,
  clusters      INTEGER,
  bytes         INTEGER,
  detail        TEXT NOT NULL,
  previous_hash BLOB NOT NULL,
  hash          BLOB NOT NULL
) STRICT;

-- A slip of the hand in the sqlite3 shell is stopped here; a determined hand is caught by the chain.
CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit trail is append-only'); END;
CREATE TRIGGER audit_is_not_deleted BEFORE DELETE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit trail is append-only'); END;

-- Property stream: typed values under dotted names; NULL hides an ancestor's.
CREATE TABLE property (
  version INTEGER NOT NULL,
  name    TEXT NOT NULL,
  value   ANY,
  PRIMARY KEY (version, name)
) STRICT, WITHOUT ROWID;

-- Fix-up stream: rows live only inside a transaction; an image at rest has none.
CREATE TABLE fixup (
  "offset"    INTEGER PRIMARY KEY,
  original    BLOB NOT NULL,
  replacement BLOB NOT NULL,
  reason      TEXT NOT NULL
) STRICT;

-- How the data key is unlocked.
CREATE TABLE key_slot (
  id          INTEGER PRIMARY KEY,
  kind        TEXT NOT NULL,
  parameters  TEXT NOT NULL,
  wrapped_key BLOB NOT NULL
) STRICT;

-- Of an image that is encrypted as a whole: the rows of the tables that tell what is on the medium. Those tables are
-- empty then; whoever has the key has them in memory.
CREATE TABLE sealed_stream (
  stream  TEXT NOT NULL,
  version INTEGER NOT NULL,
  part    INTEGER NOT NULL,
  bytes   BLOB NOT NULL,
  PRIMARY KEY (stream, version, part)
) STRICT;

-- What of a transfer has arrived: "what is missing" is a query.
CREATE TABLE segment (
  image  TEXT NOT NULL,
  number INTEGER NOT NULL,
  bytes  INTEGER NOT NULL,
  digest BLOB NOT NULL,
  state  TEXT NOT NULL CHECK (state IN ('here', 'missing')),
  PRIMARY KEY (image, number)
) STRICT, WITHOUT ROWID;

-- Until all segments are here: where in them each content lies, in pieces where it goes over their ends. No index by
-- segment, for whoever needs one reads it all. `bytes` is what has arrived of a content of which more is to come.
CREATE TABLE place (
  data     INTEGER NOT NULL,
  start    INTEGER NOT NULL CHECK (start >= 0),
  segment  INTEGER NOT NULL,
  "offset" INTEGER NOT NULL CHECK ("offset" >= 0),
  length   INTEGER NOT NULL CHECK (length > 0),
  bytes    BLOB,
  PRIMARY KEY (data, start)
) STRICT;
