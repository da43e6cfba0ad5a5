"""It is responsible for why something was decided: judged again as the services do it, now or as of then."""
