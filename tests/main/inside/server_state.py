"""Beside gauge.py."""
