"""Tables for one model: the best of the fixed ones, and tables whose numbers are learned."""
