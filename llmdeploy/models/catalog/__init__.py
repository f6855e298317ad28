"""The catalog: models by name, for every engine."""
