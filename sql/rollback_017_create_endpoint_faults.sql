-- Undoes 017: drops the endpoints at fault. The next run reads them again.
--
-- lock: ACCESS EXCLUSIVE on endpoint_faults
-- drops: endpoint_faults

DROP TABLE IF EXISTS endpoint_faults;
