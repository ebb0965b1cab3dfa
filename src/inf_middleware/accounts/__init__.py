"""Where accounts come from: one module per source."""
