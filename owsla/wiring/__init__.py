"""How a node, the parent of worker processes, and an orderly shutdown are put together."""
