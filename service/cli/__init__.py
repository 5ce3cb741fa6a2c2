"""The commands of pointillist-destination: the only place that prints."""
