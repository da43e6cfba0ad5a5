"""It is responsible for listeners of HTTP that anybody reaches: how many connections, how each is read, how it ends."""
