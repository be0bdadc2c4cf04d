-- Undoes 016: drops the alerts. Twilio keeps alerts for 30 days, and the next runs read these again.
--
-- lock: ACCESS EXCLUSIVE on webhook_alerts
-- drops: webhook_alerts

DROP TABLE IF EXISTS webhook_alerts;
