"""The one address that applications know: requests are relayed to the server of now, held meanwhile, and counted."""
