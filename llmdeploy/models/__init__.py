"""Which model: names, catalog, facts from file headers, downloads."""
