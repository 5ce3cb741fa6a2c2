"""pointillist-destination: Segment events in over gRPC, Pointillist records out over HTTP."""
