"""Whether the rows of a version are within their bounds and refer to what is there."""

from __future__ import annotations

from sqlimage.streams.control import Control
from sqlimage.streams.database import Database

# Each names what is wrong with the rows it finds; ?1 is the version, ?2 its last cluster, ?3 bytes per cluster.
_CHECKS = {
    "cluster map records overlap": """
        SELECT 'cluster ' || start_cluster FROM (
          SELECT start_cluster, max(end_cluster) OVER (
            ORDER BY start_cluster ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS reach
          FROM cluster_map WHERE version = ?1) WHERE start_cluster <= reach""",
    "cluster map record beyond the medium": """
        SELECT 'cluster ' || end_cluster FROM cluster_map WHERE version = ?1 AND end_cluster > ?2""",
    "cluster map record names data that is missing": """
        SELECT 'data ' || cluster_map.data FROM cluster_map LEFT JOIN data ON data.id = cluster_map.data
        WHERE version = ?1 AND cluster_map.data IS NOT NULL AND data.id IS NULL""",
    "cluster map record reaches beyond its data": """
        SELECT 'cluster ' || start_cluster FROM cluster_map JOIN data ON data.id = cluster_map.data
        WHERE version = ?1 AND data_offset + (end_cluster - start_cluster + 1) * ?3 > data.length""",
    "cluster map record out of range": """
        SELECT 'cluster ' || start_cluster FROM cluster_map WHERE version = ?1
        AND (start_cluster < 0 OR end_cluster < start_cluster OR data_offset < 0 OR data < 1 OR flags != 0)""",
    "bitmap runs overlap or touch": """
        SELECT 'cluster ' || start_cluster FROM (
          SELECT start_cluster, lag(end_cluster) OVER (ORDER BY start_cluster) AS reach
          FROM bitmap WHERE version = ?1) WHERE start_cluster <= reach + 1""",
    "bitmap run beyond the medium": """
        SELECT 'cluster ' || end_cluster FROM bitmap WHERE version = ?1 AND end_cluster > ?2""",
    "extent beyond the medium": """
        SELECT 'record ' || record FROM extent WHERE version = ?1 AND start_cluster + clusters - 1 > ?2""",
    "file on a volume that is not there": """
        SELECT path FROM file WHERE version = ?1 AND deleted = 0
        AND volume NOT IN (SELECT number FROM volume WHERE version = ?1)""",
}


def broken_records(database: Database, version: Control) -> list[str]:
    """What is wrong with the ranges and references of a version's rows."""
    parameters = [version.version, version.total_clusters - 1, version.bytes_per_cluster]
    problems = []
    for what, sql in _CHECKS.items():
        used = parameters[: max(n for n in (1, 2, 3) if f"?{n}" in sql)]
        problems += [f"{what} ({row[0]})" for row in database.rows(f"{sql} LIMIT 10", used)]
    return problems
