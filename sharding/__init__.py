"""Tables larger than one process: plans of rectangles, communicators, sharded collections."""
