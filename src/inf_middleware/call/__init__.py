"""One call: the record shared by a stack, and the worker that carries it through."""
