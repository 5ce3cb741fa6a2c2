"""The way in: the gRPC server."""
