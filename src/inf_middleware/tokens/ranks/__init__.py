"""The shipped rank files, in compact form."""
