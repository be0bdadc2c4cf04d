-- PostgreSQL's description of our tables. Each of our sessions has a pinned search_path and quotes only the names that
-- need it, so the words are the same in every database.

-- name: objects
-- Kind, table, name, definition, and why the object does not work ('' if it works).
WITH ours AS (
    SELECT c.oid, t.name, pg_catalog.quote_ident(n.nspname::text) || '.'::text AS schema_prefix
    FROM pg_catalog.unnest(%(tables)s::text[]) AS t (name)
    JOIN pg_catalog.pg_class AS c ON c.oid = pg_catalog.to_regclass(t.name)::oid
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
)
SELECT 'column' AS kind, o.name AS relation, a.attname::text AS name,
       pg_catalog.format_type(a.atttypid, a.atttypmod)
       || CASE WHEN a.attnotnull THEN ' NOT NULL'::text ELSE ''::text END AS definition,
       '' AS problem
FROM ours AS o
JOIN pg_catalog.pg_attribute AS a ON a.attrelid = o.oid AND a.attnum > 0 AND NOT a.attisdropped
UNION ALL
SELECT 'default', o.name, a.attname::text,
       coalesce(pg_catalog.replace(pg_catalog.pg_get_expr(d.adbin, d.adrelid), o.schema_prefix, ''), 'identity'), ''
FROM ours AS o
JOIN pg_catalog.pg_attribute AS a ON a.attrelid = o.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_catalog.pg_attrdef AS d ON d.adrelid = o.oid AND d.adnum = a.attnum
WHERE a.atthasdef OR a.attidentity::text <> ''::text
UNION ALL
-- Unique indexes that ON CONFLICT can use, under any name and from any source.
SELECT 'unique', o.name, pg_catalog.string_agg(a.attname::text, ', '::text ORDER BY k.position), '', ''
FROM ours AS o
JOIN pg_catalog.pg_index AS x
    ON x.indrelid = o.oid AND x.indisunique AND x.indisvalid AND x.indimmediate
    AND x.indpred IS NULL AND x.indexprs IS NULL
CROSS JOIN LATERAL pg_catalog.unnest(x.indkey::smallint[]) WITH ORDINALITY AS k (attnum, position)
JOIN pg_catalog.pg_attribute AS a ON a.attrelid = o.oid AND a.attnum = k.attnum
WHERE k.position <= x.indnkeyatts
GROUP BY o.name, x.indexrelid
UNION ALL
SELECT 'index', o.name, c.relname::text,
       pg_catalog.replace(pg_catalog.pg_get_indexdef(x.indexrelid), o.schema_prefix, ''),
       CASE WHEN x.indisvalid AND x.indisready THEN '' ELSE 'is invalid: its build was interrupted' END
FROM ours AS o
JOIN pg_catalog.pg_index AS x ON x.indrelid = o.oid
JOIN pg_catalog.pg_class AS c ON c.oid = x.indexrelid
WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_constraint AS k WHERE k.conindid = x.indexrelid)
UNION ALL
SELECT 'option', o.name, s.option_name, s.option_value, ''
FROM ours AS o
JOIN pg_catalog.pg_class AS c ON c.oid = o.oid
CROSS JOIN LATERAL pg_catalog.pg_options_to_table(c.reloptions) AS s
UNION ALL
SELECT 'constraint', o.name, k.conname::text,
       pg_catalog.replace(
           pg_catalog.regexp_replace(pg_catalog.pg_get_constraintdef(k.oid), ' NOT VALID$'::text, ''),
           o.schema_prefix, ''
       ),
       CASE WHEN k.convalidated THEN '' ELSE 'is not validated' END
FROM ours AS o
JOIN pg_catalog.pg_constraint AS k ON k.conrelid = o.oid AND k.contype::text = 'c'::text
UNION ALL
SELECT 'trigger', o.name, t.tgname::text,
       pg_catalog.replace(pg_catalog.pg_get_triggerdef(t.oid), o.schema_prefix, ''),
       CASE WHEN t.tgenabled::text IN ('O'::text, 'A'::text) THEN '' ELSE 'is disabled' END
FROM ours AS o
JOIN pg_catalog.pg_trigger AS t ON t.tgrelid = o.oid AND NOT t.tgisinternal
UNION ALL
SELECT 'function', '', p.proname::text || '('::text || pg_catalog.oidvectortypes(p.proargtypes) || ')'::text,
       pg_catalog.replace(
           pg_catalog.pg_get_functiondef(p.oid), pg_catalog.quote_ident(n.nspname::text) || '.'::text, ''
       ), ''
FROM pg_catalog.pg_proc AS p
JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
WHERE n.nspname::text = ANY (pg_catalog.current_schemas(false)::text[])
  AND p.prokind::text <> 'a'::text
  AND (%(functions)s::text[] IS NULL OR p.proname::text = ANY (%(functions)s::text[]));
