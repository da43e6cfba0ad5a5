"""A node. It is responsible for one inference engine, behind the same `InferenceService` that routers offer, and for a
signed receipt of its own over every exchange.

It sees plaintext inside its TEE and is attested to every router. It never sees an API key or a tenant's name, chooses
no client, and keeps nothing of a request when it has been answered but its receipt, for an hour.
"""
