"""The engines: one folder for each, the seam that they implement (`base.py`), and their registry."""
