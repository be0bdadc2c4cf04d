-- Undoes 016: the alerts go; Twilio keeps them for 30 days, and the next runs read these again.
--
-- lock: ACCESS EXCLUSIVE on webhook_alerts
-- drops: webhook_alerts

DROP TABLE IF EXISTS webhook_alerts;
