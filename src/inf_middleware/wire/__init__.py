"""Bytes in, facts out: events, dialects, and what refusals look like on the wire."""
