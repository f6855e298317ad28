"""The table of the fields that reach an engine: one class for each object, one line with its bounds for each field.

msgspec checks the bounds while it parses. A field that is not in the table is left out of the body for the engine,
because engines read fields that nobody documents, and some of them end the engine. What msgspec cannot check, such as
the depth of a grammar, is in `constraints.py` and `content.py`.
"""
