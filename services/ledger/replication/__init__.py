"""It is responsible for keeping one log on several members: one writes, the others hold every frame and take over.

Who writes is decided by the members' own durable promises alone, by a majority of them, by the rules of Raft with the
writer's epoch as the term. NATS, and whoever runs it, has no part in it.
"""
