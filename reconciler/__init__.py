"""Makes the Twilio Call Viewer's database equal to what Twilio's REST API says."""

__version__ = "0.1.0"
