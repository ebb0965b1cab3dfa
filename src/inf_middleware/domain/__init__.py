"""Pure, frozen records: what accounts, limits, prices, usage and events are."""
