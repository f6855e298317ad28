"""The one address that applications know: it relays their requests to the server of now, holds them meanwhile, counts."""
