"""Models: names, catalog, facts from the headers of files, downloads, and what is on this machine."""
