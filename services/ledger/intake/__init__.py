"""It is responsible for the way into the log: read, judged, made durable, acknowledged."""
