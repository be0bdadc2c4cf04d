-- Undoes 017: what was seen at fault goes; the next run looks again.
--
-- lock: ACCESS EXCLUSIVE on endpoint_faults
-- drops: endpoint_faults

DROP TABLE IF EXISTS endpoint_faults;
