"""Where money is kept: one module per database."""
