-- What a person with nothing but the sqlite3 shell asks. Each view gives the effective state of every version over
-- its lineage (the part of it that is in this file).

-- Every version with each of its ancestors; depth 0 is the version itself. `reach` is how many clusters of the ancestor
-- show: what a shorter version between does not have reads as zeros.
CREATE VIEW lineage (version, ancestor, depth, reach) AS
WITH RECURSIVE line (version, ancestor, depth, reach) AS (
  SELECT version, version, 0, (medium_bytes + bytes_per_cluster - 1) / bytes_per_cluster FROM control
  UNION ALL
  SELECT line.version, parent.version, line.depth + 1,
         min(line.reach, (parent.medium_bytes + parent.bytes_per_cluster - 1) / parent.bytes_per_cluster)
  FROM line
  JOIN control AS child ON child.version = line.ancestor
  JOIN control AS parent ON parent.uuid = child.parent_uuid
  WHERE line.depth < 1000
)
SELECT version, ancestor, depth, reach FROM line;

-- The versions that the other views tell about. In the library these are also ancestors in other files, under numbers
-- above a million.
CREATE VIEW effective_control
  (version, uuid, parent_uuid, label, created_at, medium_bytes, bytes_per_cluster) AS
SELECT version, uuid, parent_uuid, label, created_at, medium_bytes, bytes_per_cluster FROM control;

-- The properties that hold for a version: the nearest row of a name wins, a NULL value hides.
CREATE VIEW effective_property (version, name, value) AS
SELECT version, name, value FROM (
  SELECT lineage.version AS version, property.name AS name, property.value AS value, min(lineage.depth)
  FROM lineage JOIN property ON property.version = lineage.ancestor
  GROUP BY lineage.version, property.name
)
WHERE value IS NOT NULL;

-- The files of a version: the nearest row of a path wins, `deleted` hides.
CREATE VIEW effective_file
  (version, volume, path, kind, bytes, modified_at, record, stream, attributes, digest, since) AS
SELECT version, volume, path, kind, bytes, modified_at, record, stream, attributes, digest, since FROM (
  SELECT lineage.version AS version, file.volume AS volume, file.path AS path, file.kind AS kind,
         file.bytes AS bytes, file.modified_at AS modified_at, file.record AS record, file.stream AS stream,
         file.attributes AS attributes, file.digest AS digest, file.deleted AS deleted,
         file.version AS since, min(lineage.depth)
  FROM lineage JOIN file ON file.version = lineage.ancestor
  GROUP BY lineage.version, file.volume, file.path
)
WHERE deleted = 0;

-- The allocated runs of a version: its own, or those of the nearest ancestor that has any.
CREATE VIEW effective_bitmap (version, start_cluster, end_cluster) AS
SELECT near.version, bitmap.start_cluster, bitmap.end_cluster
FROM (
  SELECT lineage.version AS version, lineage.ancestor AS ancestor, min(lineage.depth)
  FROM lineage
  WHERE EXISTS (SELECT 1 FROM bitmap WHERE bitmap.version = lineage.ancestor)
  GROUP BY lineage.version
) AS near
JOIN bitmap ON bitmap.version = near.ancestor;

-- Which content backs which clusters of a version, over its lineage: the nearest record of each cluster wins. `data` NULL
-- reads as zeros, as do clusters without a row; `since` is the version whose record it is.
CREATE VIEW effective_cluster_map (version, start_cluster, end_cluster, data, data_offset, since) AS
SELECT told.version, told.low, told.high, record.data,
       CASE WHEN record.data IS NULL THEN 0
            ELSE record.data_offset + (told.low - record.start_cluster) * control.bytes_per_cluster END,
       told.since
FROM (
  SELECT piece.version AS version, piece.low AS low, piece.high AS high, (
    SELECT near.ancestor FROM lineage AS near
    WHERE near.version = piece.version AND near.reach > piece.low AND piece.low <= (
      SELECT candidate.end_cluster FROM cluster_map AS candidate
      WHERE candidate.version = near.ancestor AND candidate.start_cluster <= piece.low
      ORDER BY candidate.start_cluster DESC LIMIT 1)
    ORDER BY near.depth LIMIT 1) AS since
  FROM (
    SELECT version, place AS low, lead(place) OVER (PARTITION BY version ORDER BY place) - 1 AS high
    FROM (
      SELECT lineage.version AS version, cluster_map.start_cluster AS place
      FROM lineage JOIN cluster_map ON cluster_map.version = lineage.ancestor
      WHERE cluster_map.start_cluster < lineage.reach
      UNION
      SELECT lineage.version, min(cluster_map.end_cluster + 1, lineage.reach)
      FROM lineage JOIN cluster_map ON cluster_map.version = lineage.ancestor
      WHERE cluster_map.start_cluster < lineage.reach
    )
  ) AS piece
  WHERE piece.high IS NOT NULL
) AS told
JOIN control ON control.version = told.version
JOIN cluster_map AS record ON record.version = told.since AND record.start_cluster = (
  SELECT max(place.start_cluster) FROM cluster_map AS place
  WHERE place.version = told.since AND place.start_cluster <= told.low
);

-- The cluster map as the field knows it: {start, end, offset, length, compressed size, flags}.
CREATE VIEW cluster_map_record (version, start_cluster, end_cluster, data, "offset", length, compressed_size, flags) AS
SELECT cluster_map.version, cluster_map.start_cluster, cluster_map.end_cluster, cluster_map.data,
       cluster_map.data_offset,
       (cluster_map.end_cluster - cluster_map.start_cluster + 1) * control.bytes_per_cluster,
       data.stored_bytes, cluster_map.flags
FROM cluster_map
JOIN control ON control.version = cluster_map.version
LEFT JOIN data ON data.id = cluster_map.data;

-- Where the files of a version lie: of each record's stream, the extents that the nearest version has which says
-- anything about it (in `file` or in `extent`).
CREATE VIEW effective_extent (version, volume, record, stream, file_offset, start_cluster, clusters) AS
SELECT near.version, near.volume, near.record, near.stream, extent.file_offset, extent.start_cluster, extent.clusters
FROM (
  SELECT version, volume, record, stream, ancestor, min(depth) FROM (
    SELECT lineage.version AS version, extent.volume AS volume, extent.record AS record, extent.stream AS stream,
           lineage.ancestor AS ancestor, lineage.depth AS depth
    FROM lineage JOIN extent ON extent.version = lineage.ancestor
    UNION ALL
    SELECT lineage.version, file.volume, file.record, file.stream, lineage.ancestor, lineage.depth
    FROM lineage JOIN file ON file.version = lineage.ancestor
    WHERE file.record IS NOT NULL
  )
  GROUP BY version, volume, record, stream
) AS near
JOIN extent ON extent.version = near.ancestor AND extent.volume = near.volume
           AND extent.record = near.record AND extent.stream = near.stream;

-- Every extent with the path of the file it belongs to (a file with several names appears once for each).
CREATE VIEW owner (version, volume, path, start_cluster, end_cluster) AS
SELECT place.version, place.volume, file.path, place.start_cluster,
       place.start_cluster + place.clusters - 1
FROM effective_extent AS place
JOIN effective_file AS file ON file.version = place.version AND file.volume = place.volume
                           AND file.record = place.record AND file.stream = place.stream;
