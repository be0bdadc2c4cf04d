"""Twilio's REST API and wire forms. This package knows nothing of the database."""
