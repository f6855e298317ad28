"""Engines that are Python programs: the environments that have them, found, inspected and installed."""
