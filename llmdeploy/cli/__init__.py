"""The face: the only code that knows Typer, Rich and exit statuses. One file per command."""
