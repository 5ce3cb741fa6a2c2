"""`send`: a file through BatchSend."""
