-- Undoes 001: drops the inbox, with every webhook in it.
--
-- lock: ACCESS EXCLUSIVE on twilio_webhook_inbox
-- drops: twilio_webhook_inbox

DROP TABLE IF EXISTS twilio_webhook_inbox;
