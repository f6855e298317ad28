"""The one address that applications know: it relays, holds and counts their requests."""
