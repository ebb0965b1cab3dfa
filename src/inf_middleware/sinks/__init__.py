"""Where billing events go, and the relay that brings them there."""
