"""The service: it starts a server, keeps it running, and records what it serves."""
