"""Measurements; each compares within one run, so that the machine does not matter."""
