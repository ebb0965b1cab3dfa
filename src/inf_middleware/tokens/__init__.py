"""Counting tokens, with no internet at all."""
