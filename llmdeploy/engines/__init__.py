"""How a model is run: one folder for each engine, the seam that they implement (`base.py`), and their registry."""
