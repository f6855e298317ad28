"""Tests of real engines."""
